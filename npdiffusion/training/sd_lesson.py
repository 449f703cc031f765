"""`npdiffusion train sd`: a whole Stable Diffusion from nothing, which draws "a seven" and "a three and an eight".

    1   pictures with captions, compositions.py        digits → 32×32 pixels
    2   the autoencoder, first_stage.py                pixels ↔ latents 8×8×4, encoded once
    3   text encoder and UNet, together                latents, captions → a UNet that predicts v
        L = ‖v̂ − v‖², without Min-SNR's weights, which all but leave out the levels of nearly pure noise: which digit it
        is to be is decided there
        one caption in ten is empty, for classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598)
    4   the folder, model_folder.py                    what -m and diffusers load, and a sheet of what it draws

Both trainings are runs (runs.py): the second one's state and log are in the folder itself, the first one's in first-stage/.
Everything follows from the settings, so a run that was stopped anywhere goes on by the same call.
"""
import pathlib
import statistics
import time
from dataclasses import asdict, dataclass, replace

import numpy as np
from PIL import Image

from npdiffusion.checkpoints.text_files import read_json
from npdiffusion.diffusion.schedules.settings import NoiseSchedule
from npdiffusion.errors import UserError
from npdiffusion.models.clip import CLIPTextModel
from npdiffusion.models.configs import CLIPTextConfig, UNetConfig
from npdiffusion.models.unet import UNet2DConditionModel
from npdiffusion.pictures.sheets import sheet
from npdiffusion.training import first_stage, initial, loop, model_folder, rates, runs, vocabulary
from npdiffusion.training.averages import Average
from npdiffusion.training.compositions import SIDE, caption, compose
from npdiffusion.training.denoising import Denoising
from npdiffusion.training.optimizers import AdamW

WORDS, WIDTH = 8, 64                       # ids of a caption, and the width of their hidden states
UNET = UNetConfig(block_out_channels=(48, 96), layers_per_block=1, cross_attention_dim=WIDTH, cross_attention=(False, True),
                  heads=(4, 4), norm_num_groups=8, sample_size=SIDE // first_stage.CONFIG.reduction)
FIRST_SHARE = 0.25                         # of the time that is for the autoencoder
PICTURE, SHOWN = "sd.png", 3               # how many times larger pictures are there
EMPTY = 0.1                                # share of captions that are left out
GUIDANCE = 3.0                             # at which docs/train-sd.md judges it


@dataclass(frozen=True)
class Settings:
    """What decides how a run goes. `data` is named for the run's folder, which refuses another.

    pictures: how many are composed, see `enough`      vae_…: of the first stage      rate: the highest one, of either stage
    """
    data: str
    pictures: int = 8_000
    vae_steps: int = 2_000
    steps: int = 3_500
    vae_batch: int = 16
    batch: int = 64
    rate: float = 2e-3
    seed: int = 0

    def first_stage(self):
        """Those of the first stage"""
        return first_stage.Settings(self.data, self.pictures, self.vae_steps, self.vae_batch, self.rate, self.seed)


class TextToLatents:
    """Text encoder and UNet, and their training on captions and moments (2, N, h, w, C)"""
    def __init__(self, settings, captions, moments, tokenizer):
        self.settings, self.tokenizer, self.moments = settings, tokenizer, moments
        self.ids = np.stack([tokenizer.encode(each) for each in captions])
        self.empty = tokenizer.encode("")
        self.schedule = NoiseSchedule(prediction_type="v_prediction", class_name="DDIMScheduler", own_sampler="ddim")
        self.denoising = Denoising(self.schedule)
        pieces = len(tokenizer.vocabulary)
        self.text_encoder = CLIPTextModel(CLIPTextConfig(
            vocab_size=pieces, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=WORDS, eos_token_id=pieces - 1, projection_dim=WIDTH))
        self.unet = UNet2DConditionModel(UNET)
        rng = np.random.default_rng([settings.seed, 2])
        trained = {f"{name}.{path}": value for name in ("text_encoder", "unet")
                   for path, value in initial.begin(getattr(self, name), rng).items()}
        for table in vars(self.text_encoder.embeddings).values():      # with CLIP's 0.02 the layers' first outputs would drown
            table.weight *= 50                                          # what a word is, and captions would hardly differ
        self.training = loop.Training(
            self.loss, AdamW(trained, decay=0.0), average=Average(trained, 0.995), seed=settings.seed,
            rate=lambda step: rates.rate(step, settings.rate, settings.steps, "cosine", min(50, settings.steps // 10)))

    def loss(self, number, rng):
        """Of a batch, see loop.Training"""
        index = loop.shuffled(number, len(self.ids), self.settings.batch, self.settings.seed)
        mean, spread = self.moments[:, index]
        latents = mean + spread * rng.standard_normal(mean.shape, np.float32)
        t, noise = self.denoising.draw(latents.shape, rng)
        said = np.where(rng.random((len(index), 1)) < EMPTY, self.empty, self.ids[index])
        states = self.text_encoder(said)
        return self.denoising.loss(self.unet(self.denoising.noised(latents, t, noise), t, states), latents, t, noise)


def run(settings, digits, folder, first=None, second=None):
    """Train, or go on → the folder, a model, or None if it was stopped. UserErrors as of `loop.train`, and for a
    folder in which another model stands.

    first, second: called as first(step, steps, {name: number}) after each step of the autoencoder, and of the rest
    """
    folder = pathlib.Path(folder)
    if (folder / model_folder.INDEX).exists() and not (folder / runs.SETTINGS).exists():
        raise UserError(f"{folder}: a model is here that wasn't trained by this command; take another folder")
    with runs.Run(folder, asdict(settings)) as kept:
        composed = compose(digits.images, digits.labels, settings.pictures, np.random.default_rng([settings.seed, 0]))
        stage = first_stage.FirstStage(settings.first_stage(), composed.images)
        moments = stage.run(folder, first)
        if moments is None:
            return None
        lesson = TextToLatents(settings, composed.captions(digits.names), moments, tokenizer(digits.names))
        steps = settings.steps
        if not loop.train(lesson.training, kept, steps,
                          second and (lambda values: second(values["step"], steps, values))):
            return None
        lesson.training.average.swap()
        model_folder.write(folder, lesson.unet, stage.vae, lesson.text_encoder, lesson.tokenizer, lesson.schedule, GUIDANCE)
    return folder


def tokenizer(names):
    """Of all captions that there can be"""
    one = [(each,) for each in range(len(names))]
    return vocabulary.learn([caption(each, names) for each in [*one, *((*a, *b) for a in one for b in one)]], WORDS)


def enough(digits):
    """How many pictures to compose: two of each digit, but no more than are encoded in half a minute"""
    return min(8_000, 2 * len(digits.images))


def planned(settings, digits, folder, minutes):
    """The settings with as many steps as both trainings can do in so many minutes; those of the run, if it has begun

    Some steps of each are timed, of trainings that are thrown away.
    """
    path = pathlib.Path(folder, runs.SETTINGS)
    if path.exists():
        begun = read_json(path)
        return replace(settings, **{name: begun[name] for name in ("vae_steps", "steps") if isinstance(begun.get(name), int)})
    count = max(settings.vae_batch, settings.batch)
    composed = compose(digits.images, digits.labels, count, np.random.default_rng(0))
    moments = np.ones((2, count, UNET.sample_size, UNET.sample_size, UNET.in_channels), np.float32)
    stage = first_stage.FirstStage(settings.first_stage(), composed.images)
    lesson = TextToLatents(settings, composed.captions(digits.names), moments, tokenizer(digits.names))
    vae_steps, steps = (max(50, int(60 * minutes * share / seconds(each.training)))
                        for share, each in ((FIRST_SHARE, stage), (1 - FIRST_SHARE, lesson)))
    return replace(settings, vae_steps=vae_steps, steps=steps)


def seconds(training):
    """How long a step takes, the median of three after one in which kernels are compiled"""
    times = []
    for _ in range(4):
        begun = time.monotonic()
        training.advance()
        times.append(time.monotonic() - begun)
    return statistics.median(times[1:])


def drawn(pipeline, names, seed=0):
    """A sheet of what a model draws: each digit, and as many pairs of two → PIL image (RGB)"""
    count = len(names)
    asked = [(each,) for each in range(count)] + [(each, (3 * each + 9) % count) for each in range(count)]
    captions = [caption(each, names) for each in asked]
    pictures = [pipeline.generate(each, seed=seed, steps=20, sampler="dpm++2m", progress=False)[0] for each in captions]
    side = SIDE * SHOWN
    return sheet([each.resize((side, side), Image.Resampling.NEAREST) for each in pictures], captions, columns=5)
