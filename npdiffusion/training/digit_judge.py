"""A judge of what `train sd` draws: a classifier that has no part in it, trained on the real digits.

    reading      a picture → pieces of ink with an empty column between them, each made as large as MNIST's digits are (20
                 pixels, in the middle of 28×28) → their classes, from left to right
    verdict      right if that is what was asked for: another digit, one too many, or two that touch are wrong

The judge's own error is measured by the same reading on digits that neither it nor the model has seen.
"""
import collections
import pathlib
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image

from npdiffusion import kernels
from npdiffusion.checkpoints.text_files import read_json
from npdiffusion.errors import UserError
from npdiffusion.models.layers import Conv2d, Linear
from npdiffusion.training import initial, loop, rates, runs
from npdiffusion.training.compositions import BOXES, INK, caption, compose, cut_out, fitted
from npdiffusion.training.digits import CLASSES, SIDE
from npdiffusion.training.optimizers import Adam
from npdiffusion.training.variable import value_of

FOLDER, PICTURE = "judge", "judged.png"
CHANNELS, HIDDEN = (16, 32), 64
SPECK = 0.05                               # a piece with less than this share of the ink is none
PAIRS = 20                                 # of digits, of the hundred that there are
SHOWN, FRAME = 10, 2                       # pictures in a row of the sheet, pixels around each


@dataclass(frozen=True)
class Settings:
    """What decides how the judge learns."""
    data: str
    steps: int = 1500
    batch: int = 64
    rate: float = 3e-3
    seed: int = 0


class Classifier:
    """Digits (N, 28, 28, 1) in [0, 1] → logits (N, 10)"""
    def __init__(self):
        self.conv1 = Conv2d(1, CHANNELS[0], stride=2)
        self.conv2 = Conv2d(*CHANNELS, stride=2)
        self.hidden = Linear(SIDE * SIDE // 16 * CHANNELS[1], HIDDEN)
        self.to_logits = Linear(HIDDEN, CLASSES)

    def __call__(self, x):
        x = kernels.silu(self.conv2(kernels.silu(self.conv1(x))))
        return self.to_logits(kernels.silu(self.hidden(x.reshape(len(x), -1))))


def cross_entropy(logits, labels):
    """−ln of the probability of the right class: ln Σ e^ℓ − ℓ_label, the mean over N      logits (N, K), labels (N,)"""
    shifted = logits - value_of(logits).max(axis=1, keepdims=True)
    chosen = np.eye(logits.shape[1], dtype=np.float32)[labels]
    return (np.log(np.exp(shifted).sum(axis=1)) - (shifted * chosen).sum(axis=1)).mean()


class Judge:
    """The classifier, its training on Digits, and its reading of pictures"""
    def __init__(self, settings, digits):
        self.settings, self.digits, self.classifier = settings, digits, Classifier()
        trained = initial.begin(self.classifier, np.random.default_rng([settings.seed, 3]))
        sharp = [cut_out(each) for each in digits.images]
        self.views = np.stack([[normal(each), normal(fitted(each, BOXES[1]))] for each in sharp])    # as one, as one of two
        self.training = loop.Training(self.loss, Adam(trained), seed=settings.seed,
                                      rate=lambda step: rates.rate(step, settings.rate, settings.steps, "cosine"))

    def loss(self, number, rng):
        """Of a batch, each digit a pixel off its place at most, see loop.Training"""
        index = loop.shuffled(number, len(self.views), self.settings.batch, self.settings.seed)
        views = self.views[index, rng.integers(2, size=len(index))]
        shifts = rng.integers(-1, 2, (len(index), 2))
        x = np.stack([np.roll(each, shift, (0, 1)) for each, shift in zip(views, shifts)])
        return cross_entropy(self.classifier(as_input(x)), self.digits.labels[index])

    def run(self, folder, listener=None):
        """Train in folder/judge, or go on → whether it is done"""
        with runs.Run(pathlib.Path(folder, FOLDER), asdict(self.settings)) as kept:
            steps = self.settings.steps
            return loop.train(self.training, kept, steps, listener and (lambda values: listener(values["step"], steps, values)))

    def classes(self, views):
        """Digits (N, 28, 28) uint8, as `normal` makes them → a list of classes"""
        return self.classifier(as_input(np.asarray(views))).argmax(axis=1).tolist() if len(views) else []

    def read(self, pictures):
        """Pictures (N, H, W) uint8 → a tuple of classes for each"""
        found = [pieces(each) for each in pictures]
        classes = iter(self.classes([normal(piece) for each in found for piece in each]))
        return [tuple(next(classes) for _ in each) for each in found]

    def own_error(self, count=500):
        """Shares that are read wrong: of held-out digits, and of compositions of these, two Python floats"""
        digits = self.digits
        read = self.classes([normal(cut_out(each)) for each in digits.held_out_images])
        rng = np.random.default_rng([self.settings.seed, 4])
        composed = compose(digits.held_out_images, digits.held_out_labels, count, rng)
        wrong = [found != asked for found, asked in zip(self.read(composed.images), composed.classes)]
        return float(np.mean(read != digits.held_out_labels)), float(np.mean(wrong))


def pieces(picture):
    """Cut a picture (H, W) uint8 at its empty columns → its pieces of ink, specks left out"""
    columns = np.flatnonzero((picture >= INK).any(axis=0))
    if not len(columns):
        return []
    runs_ = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)
    parts = [picture[:, each[0]:each[-1] + 1] for each in runs_]
    ink = picture.sum(dtype=np.float64)
    return [cut_out(each) for each in parts if each.sum() > SPECK * ink]


def normal(piece):
    """A piece of ink (H, W) uint8 → (28, 28): its longer side 20 pixels, its centre of mass in the middle, as in MNIST"""
    digit = fitted(piece, BOXES[0])
    mass = digit.astype(np.float64) + 1e-9
    middle = [(mass.sum(axis=1 - axis) @ np.arange(digit.shape[axis])) / mass.sum() for axis in (0, 1)]
    top, left = (min(max(round((SIDE - 1) / 2 - at), 0), SIDE - size) for at, size in zip(middle, digit.shape))
    whole = np.zeros((SIDE, SIDE), np.uint8)
    whole[top:top + digit.shape[0], left:left + digit.shape[1]] = digit
    return whole


def as_input(views):
    """(N, 28, 28) uint8 → (N, 28, 28, 1) float32 in [0, 1]"""
    return views[..., None].astype(np.float32) / 255


# ---- the exam

def check(folder, digits):
    """UserError unless the run in a folder learnt from these digits."""
    path = pathlib.Path(folder, runs.SETTINGS)
    if not path.exists():
        raise UserError(f"{folder}: no run of `npdiffusion train sd` is here")
    source = read_json(path).get("data")
    if source != digits.source:
        raise UserError(f"{folder}: it learnt from {source!r}, and is to be judged by {digits.source!r}: give the same --data")


@dataclass(frozen=True)
class Answer:
    """What was asked for, drawn (H, W) uint8, and read"""
    asked: tuple
    picture: np.ndarray
    read: tuple

    @property
    def right(self):
        return self.asked == self.read


def exam(judge, pipeline, names, count, seed=0, listener=None):
    """Ask a model for each digit `count` times, and for PAIRS of two, which the seed chooses, half as often → [Answer, …]

    Defaults of the model decide all but the prompt. listener(done, all) is called after each prompt.
    """
    two = np.random.default_rng(seed).permutation(CLASSES ** 2)[:PAIRS]
    questions = [((each,), count) for each in range(CLASSES)]
    questions += [(divmod(each, CLASSES), (count + 1) // 2) for each in two.tolist()]
    answers = []
    for number, (asked, times) in enumerate(questions):
        images = pipeline.generate(caption(asked, names), seed=seed + 1000 * number, count=times, progress=False)
        pictures = [np.asarray(image.convert("L")) for image in images]
        answers += [Answer(asked, picture, read) for picture, read in zip(pictures, judge.read(pictures))]
        if listener:
            listener(number + 1, len(questions))
    return answers


def table(answers, names):
    """Lines: how many pictures of each digit are right, and of two, and what the wrong ones show"""
    groups = collections.defaultdict(list)
    for each in answers:
        groups[caption(each.asked, names) if len(each.asked) == 1 else "two digits"].append(each)
    groups = {**groups, "one digit": [each for each in answers if len(each.asked) == 1]}
    for what, group in sorted(groups.items(), key=lambda pair: "digit" in pair[0]):
        right = sum(each.right for each in group)
        wrong = collections.Counter(" ".join(map(str, each.read)) or "nothing" for each in group if not each.right)
        read = f"read as {', '.join(f'{what} ({times})' for what, times in wrong.most_common(5))}" if wrong else ""
        yield f"{what:<12}{right:>5} of {len(group):<5}{100 * right / len(group):>6.1f} %  {read}".rstrip()


def sheet(answers):
    """The first answers for each digit in a row, then as many rows of pairs; those that are wrong have a bright frame"""
    singles = [[each for each in answers if each.asked == (digit,)][:SHOWN] for digit in range(CLASSES)]
    pairs = [each for each in answers if len(each.asked) == 2]
    rows = [*singles, *(pairs[start:start + SHOWN] for start in range(0, len(pairs), max(1, len(pairs) // CLASSES)))]
    side = len(answers[0].picture) + 2 * FRAME
    whole = np.full((len(rows) * side, SHOWN * side), 60, np.uint8)
    for i, row in enumerate(rows):
        for j, each in enumerate(row[:SHOWN]):
            cell = np.pad(each.picture, FRAME - 1, constant_values=0 if each.right else 255)
            whole[i * side + 1:(i + 1) * side - 1, j * side + 1:(j + 1) * side - 1] = cell
    return Image.fromarray(whole)
