"""Judge the model by something that is not a model: which sprite is nearest, where, and on what ground.

    ground     the border's median colour, row by row in scenery          → nearest of all colours and sceneries
    subject    what differs from the ground, cut out and made 24 × 24     → nearest of all sprites, drawn at the same
                                                                            place and cut out likewise (squared error)
    several    the same in the left and right half, or top, bottom left and bottom right, with a gap between
    tint       the nearest of all subjects, of all in that colour and of this one in all colours has to be it
    size       longest side of what was cut out;   place    its middle
    PSNR       unseen scenes, encoded and decoded                         → mean of 10 log₁₀(255² / mean squared error)

The questions (`exam`) ask for combinations that training never showed: a subject on a ground, two subjects together,
a subject in another colour. Half of them are worded plainly, half in one of many ways; seeds are 0, 1, 2, …

    python -m weights.recipe.judge [--with npdiffusion|diffusers] [--steps 50] [--guidance 4] [--share 1]
    python -m weights.recipe.judge --with font|autoencoder        the judge's own trial: drawn scenes have to pass
"""

import argparse
import json
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from . import curves, settings
from .captions import caption
from .scenes import (
    COLOURS, GROUNDS, PLACES, SCENERY, UNCOUNTED, Scene, draw, held_out, load_sprites, sample_scene, scaled, tinted,
    tints_of,
)
from .subjects import NAMES

FRAME = 3                                                   # pixels of border that show the ground
DIFFERS = 36                                                # of 255, in one channel at least: this is no longer ground
SPECK, STAR = 12, 36                                        # pixels; what is no larger is no subject
THUMBNAIL = 24
SMALL, BIG, OFF_CENTRE = 62, 92, 9                          # pixels, between those of the scenes drawn
QUESTIONS = dict(subject=150, words=100, two=80, tint=70, count=50, scenery=50)


# Looking at a picture ------------------------------------------------------------------------------------------

def ground_of(picture):
    """What lies behind the subjects: one colour, if most of the border has it, else one for each row.

    (H, W, 3) → (H, 1, 3) float32
    """
    inside = np.zeros(picture.shape[:2], bool)
    inside[FRAME:-FRAME, FRAME:-FRAME] = True
    border = picture[~inside]
    colour = np.median(border, axis=0)
    if (np.abs(border - colour) < DIFFERS).all(axis=1).mean() > 0.7:
        return np.tile(colour, (len(picture), 1, 1))
    sides = np.concatenate([picture[:, :FRAME], picture[:, -FRAME:]], axis=1)
    return np.median(sides, axis=1, keepdims=True)


def name_of_ground(ground):
    """→ the colour or scenery whose upper and lower parts are nearest"""
    upper, lower = ground[8:40].mean(axis=(0, 1)), ground[100:122].mean(axis=(0, 1))

    def distance(name):
        if name in settings.PALETTE:
            looks = (settings.PALETTE[name],) * 2
        else:
            (top, low), below = settings.SCENERY[name]
            share = np.array([24 / np.mean(settings.HORIZON), 111 / settings.PIXELS])[:, None]
            sky = (1 - share) * top + share * low if below is None else top + (np.array(low) - top) * share[:1]
            looks = sky[0], sky[1] if below is None else below
        return ((looks[0] - upper) ** 2).sum() + ((looks[1] - lower) ** 2).sum()
    return min(GROUNDS, key=distance)


def outline(picture, ground, scenery):
    """Where something stands out from the ground, specks left out, in scenery stars and lines of one pixel, too.

    → (H, W) bool
    """
    mask = (np.abs(picture - ground) > DIFFERS).any(axis=2)
    if scenery:
        mask = ndimage.binary_opening(mask, np.ones((2, 2)))
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    if count < 2:
        return mask
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    return mask & (sizes > (STAR if scenery else SPECK))[parts]


def stars_in(picture, ground):
    """How many specks are brighter than the ground."""
    parts, count = ndimage.label((picture - ground).mean(axis=2) > DIFFERS, np.ones((3, 3)))
    return int((np.bincount(parts.ravel(), minlength=count + 1)[1:] <= STAR).sum())


def box_of(mask):
    """→ (top, left, bottom, right), or None if nothing is there"""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1) if len(rows) else None


def thumbnail(picture, ground, box):
    """The box, centred in a square of ground.     → (24, 24, 3) float"""
    top, left, bottom, right = box
    side = max(bottom - top, right - left)
    square = np.empty((side, side, 3))
    square[:] = ground[top:bottom].mean(axis=(0, 1)).round()
    down, across = (side - bottom + top) // 2, (side - right + left) // 2
    square[down:down + bottom - top, across:across + right - left] = picture[top:bottom, left:right]
    small = Image.fromarray(square.astype(np.uint8)).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(small, np.float32)


class Judge:
    """Knows the sprites; a sprite is called by (name, tint), where tint is "" for its own colours."""

    def __init__(self, sprites):
        self.sprites = sprites
        self.scaled = lru_cache(20_000)(self.scaled)

    def scaled(self, name, tint, longest):
        """→ (h, w, 4) float, alpha in 0 … 1"""
        sprite = tinted(self.sprites[name], tint) if tint else self.sprites[name]
        pixels = np.array(scaled(sprite, longest), np.float32)
        pixels[..., 3] /= 255
        return pixels

    def drawn(self, name, tint, ground, scenery, box):
        """The thumbnail of a sprite drawn where the box is; None if it cannot be seen there."""
        top, left, bottom, right = box
        pixels = self.scaled(name, tint, int(max(bottom - top, right - left)))
        first = int(np.clip((top + bottom - len(pixels)) // 2, 0, settings.PIXELS - len(pixels)))
        behind = ground[first:first + len(pixels)]
        picture = (behind + pixels[..., 3:] * (pixels[..., :3] - behind)).round()
        seen = box_of(outline(picture, behind, scenery))
        return None if seen is None else thumbnail(picture, behind, seen)

    def nearest(self, picture, ground, scenery, box, more=()):
        """→ (name, tint) of the sprite most like what is in the box; `more`: tinted ones to compare with, too"""
        seen = thumbnail(picture, ground, box)
        known = {one: self.drawn(*one, ground, scenery, box) for one in [*((name, "") for name in self.sprites), *more]}
        return min((one for one in known if known[one] is not None), key=lambda one: ((known[one] - seen) ** 2).mean(),
                   default=(None, ""))

    def rivals(self, name, tint):
        """What a subject in another colour is compared with: itself in all colours and all others in this one."""
        return [(name, other) for other in tints_of(name)] + [(other, tint) for other in self.sprites
                                                             if other != name and tint in tints_of(other)]

    def marks(self, scene, picture):
        """What of the scene is in the picture.     → {"subject", "ground", "size", "place": bool}"""
        picture = np.asarray(picture).astype(np.float32)
        ground = ground_of(picture)
        seen = name_of_ground(ground)
        scenery = seen in SCENERY
        mask = outline(picture, ground, scenery)
        ground_is_right = seen == scene.background and (seen != "night" or stars_in(picture, ground) >= 4)
        names = scene.subjects * scene.count
        boxes = boxes_of(mask, len(names))
        more = self.rivals(*names, scene.tint) if scene.tint and len(names) == 1 else ()
        found = [self.nearest(picture, ground, scenery, box, more) for box in boxes]
        right = dict(subject=sorted(found, key=str) == sorted(((name, scene.tint) for name in names), key=str),
                     ground=ground_is_right, size=True, place=True)
        if len(names) == 1:
            right["size"] = bool(boxes) and size_of(boxes[0]) == scene.size
            right["place"] = bool(boxes) and place_of(boxes[0]) == scene.place.replace("centre", "")
        return right


def boxes_of(mask, count):
    """Outlines of one subject, of two side by side or of one above two, or none if there is no gap between them."""
    half = settings.PIXELS // 2
    parts = np.zeros((count, *mask.shape), bool)
    middle = slice(half - 8, half + 8)
    if count == 1:
        parts[:] = mask
    elif count == 2:
        parts[0, :, :half], parts[1, :, half:] = mask[:, :half], mask[:, half:]
        gaps = [mask[:, middle].sum(axis=0)]
    else:
        parts[0, :half], parts[1, half:, :half] = mask[:half], mask[half:, :half]
        parts[2, half:, half:] = mask[half:, half:]
        gaps = [mask[middle].sum(axis=1), mask[half:, middle].sum(axis=0)]
    boxes = [box_of(part) for part in parts]
    if None in boxes or count > 1 and any(gap.min() > 4 for gap in gaps):
        return []
    return boxes


def size_of(box):
    longest = max(box[2] - box[0], box[3] - box[1])
    return "small" if longest < SMALL else "big" if longest > BIG else ""


def place_of(box):
    down, across = (box[0] + box[2] - settings.PIXELS) / 2, (box[1] + box[3] - settings.PIXELS) / 2
    vertical = "top" if down < -OFF_CENTRE else "bottom" if down > OFF_CENTRE else ""
    horizontal = "left" if across < -OFF_CENTRE else "right" if across > OFF_CENTRE else ""
    return f"{vertical} {horizontal}".strip()


# Asking --------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Question:
    kind: str
    scene: Scene
    text: str
    seed: int


def exam(share=1.0, kinds=tuple(QUESTIONS), names=NAMES):
    """The first `share` of the questions of each kind, always with the same words and seeds.     → list of Question"""
    rng = np.random.default_rng([settings.SEED, 6])

    def shuffled(rows):
        return [rows[i] for i in rng.permutation(len(rows))]

    on_colour = shuffled([(name, colour) for name in names for colour in COLOURS if held_out(name, colour)])
    on_scenery = shuffled([(name, scenery) for name in names for scenery in SCENERY if held_out(name, scenery)])
    pairs = shuffled([pair for pair in combinations(sorted(names), 2) if held_out(*pair)])
    shifted = shuffled([(name, tint) for name in names for tint in tints_of(name) if held_out(name, f"in {tint}")])
    counted = [row for row in on_colour if row[0] not in UNCOUNTED]
    extras = [dict(size="small"), dict(size="big"), *(dict(place=place) for place in PLACES),
              *(dict(size="small", place=place) for place in PLACES)]
    colours = shuffled(COLOURS)
    asked = dict(
        subject=[Scene((name,), colour) for name, colour in on_colour],
        words=[Scene((name,), colour, **extras[i % len(extras)]) for i, (name, colour) in enumerate(on_colour[::-1])],
        two=[Scene(pair, colours[i % len(colours)]) for i, pair in enumerate(pairs)],
        tint=[Scene((name,), next(c for c in colours[i % 9:] + colours if c != tint), tint=tint)
              for i, (name, tint) in enumerate(2 * shifted)],
        count=[Scene((name,), colour, count=2 + i % 2) for i, (name, colour) in enumerate(counted)],
        scenery=[Scene((name,), scenery) for name, scenery in on_scenery],
    )
    questions = []
    for kind, count in QUESTIONS.items():
        wordings = np.random.default_rng([settings.SEED, 7])
        for i, scene in enumerate(asked[kind][:count]):
            text = caption(scene, wordings, whole=True) if i % 2 else caption(scene)
            questions.append((i < round(share * count), Question(kind, scene, text, len(questions))))
    return [question for among, question in questions if among and question.kind in kinds]


def figures_of(questions, marks):
    """→ {kind: share right}: "subject", "words" and so on as in `QUESTIONS`, "background" on plain colours"""
    right = {"background": [m["ground"] for q, m in zip(questions, marks) if q.scene.background in COLOURS]}
    for q, m in zip(questions, marks):
        right.setdefault(q.kind, []).append({
            "words": m["size"] and m["place"], "scenery": m["ground"], "count": m["subject"],
        }.get(q.kind, m["subject"]))
        if q.kind in ("words", "scenery"):
            right.setdefault(f"subject, {q.kind}", []).append(m["subject"])
    return {kind: round(100 * float(np.mean(values)), 1) for kind, values in right.items() if values}


def psnr(a, b):
    """Mean over scenes of 10 log₁₀(255² / mean squared error), in decibel.     a, b: (N, H, W, 3) uint8"""
    squared = ((a.astype(np.float64) - b) ** 2).mean(axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(255 ** 2 / squared)))


def unseen_scenes(count, sprites):
    """→ (count, 128, 128, 3) uint8, from a generator that training does not use"""
    rng = np.random.default_rng([settings.SEED, 1])
    return np.stack([draw(sample_scene(rng), sprites, rng) for _ in range(count)])


def to_uint8(x):
    """−1 … 1 → 0 … 255"""
    return ((x.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)


# Who draws -----------------------------------------------------------------------------------------------------

class WithNpdiffusion:
    def __init__(self, model, steps, guidance, sampler):
        import npdiffusion
        self.pipeline = npdiffusion.load(str(model))
        self.options = dict(steps=steps, guidance_scale=guidance, sampler=sampler)

    def generate(self, questions):
        for question in questions:
            yield from self.pipeline.generate(question.text, seed=question.seed, **self.options)

    def reconstruct(self, pictures):
        x = pictures.astype(np.float32) / 127.5 - 1
        mean = self.pipeline.vae.latents(x, lambda: 0)      # without noise
        return to_uint8(self.pipeline.vae.decode(mean))


class WithDiffusers:
    """The same from the reference, in batches."""

    def __init__(self, model, steps, guidance, sampler, batch=16):
        import torch
        from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
        self.torch, self.steps, self.guidance, self.batch = torch, steps, guidance, batch
        self.pipeline = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32)
        self.pipeline.set_progress_bar_config(disable=True)
        if sampler == "dpm++2m":
            self.pipeline.scheduler = DPMSolverMultistepScheduler.from_config(self.pipeline.scheduler.config)
        if torch.cuda.is_available():
            self.pipeline.to("cuda")

    def generate(self, questions):
        for i in range(0, len(questions), self.batch):
            some = questions[i:i + self.batch]
            generators = [self.torch.Generator().manual_seed(question.seed) for question in some]
            yield from self.pipeline(
                [question.text for question in some], num_inference_steps=self.steps, guidance_scale=self.guidance,
                height=settings.PIXELS, width=settings.PIXELS, generator=generators).images

    def reconstruct(self, pictures):
        x = self.torch.from_numpy(pictures).permute(0, 3, 1, 2).to(self.pipeline.device).float() / 127.5 - 1
        with self.torch.no_grad():
            mean = self.pipeline.vae.encode(x).latent_dist.mean
            return to_uint8(self.pipeline.vae.decode(mean).sample.permute(0, 2, 3, 1).cpu().numpy())


class Drawn:
    """The scenes themselves, which the judge has to pass; with an artist, after a trip through its autoencoder."""

    def __init__(self, sprites, artist=None):
        self.sprites, self.artist = sprites, artist

    def generate(self, questions):
        for question in questions:
            picture = draw(question.scene, self.sprites, np.random.default_rng([settings.SEED, 8, question.seed]))
            yield self.reconstruct(picture[None])[0]

    def reconstruct(self, pictures):
        return self.artist.reconstruct(pictures) if self.artist else pictures


WITH = {"npdiffusion": WithNpdiffusion, "diffusers": WithDiffusers}


def arguments(description):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--with", dest="library", choices=[*WITH, "font", "autoencoder"], default="npdiffusion")
    parser.add_argument("--model", default=settings.MODEL)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=settings.GUIDANCE)
    parser.add_argument("--sampler", choices=("ddim", "dpm++2m"), default="ddim")
    parser.add_argument("--font", default=settings.FONT)
    return parser


def main():
    parser = arguments(__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the questions of each kind, the first ones")
    parser.add_argument("--kinds", default=",".join(QUESTIONS), help="of questions, with commas")
    parser.add_argument("--mistakes", action="store_true", help="print every caption that was not fulfilled")
    parser.add_argument("--record", type=int, metavar="STEP", help="keep the figures for recipe/curves.py")
    args = parser.parse_args()
    sprites, drawing = load_sprites(args.font), (args.model, args.steps, args.guidance, args.sampler)
    if args.library in WITH:
        artist = WITH[args.library](*drawing)
    else:
        artist = Drawn(sprites, WithNpdiffusion(*drawing) if args.library == "autoencoder" else None)

    questions, judge = exam(args.share, args.kinds.split(",")), Judge(sprites)
    marks = []
    for question, picture in zip(questions, tqdm(artist.generate(questions), total=len(questions), unit="picture")):
        marks.append(judge.marks(question.scene, picture))
        if args.mistakes and not all(marks[-1].values()):
            wrong = ", ".join(name for name, right in marks[-1].items() if not right)
            tqdm.write(f"{question.seed:3} {question.text:60} wrong: {wrong}")
    figures = figures_of(questions, marks)
    if args.library != "font":
        scenes = unseen_scenes(64, sprites)
        figures["psnr"] = round(psnr(np.concatenate([artist.reconstruct(b) for b in np.split(scenes, 8)]), scenes), 2)
    if args.record:
        curves.record(figures, args.record)
    for name, value in figures.items():
        print(f"{name:20} {value:6.2f} {'dB' if name == 'psnr' else '%'}")
    print(json.dumps(dict(questions=len(questions), steps=args.steps, guidance=args.guidance, sampler=args.sampler,
                          library=args.library, **figures)))


if __name__ == "__main__":
    main()
