"""`npdiffusion train ddpm`: denoising diffusion of digits, unconditional, pixels without an autoencoder (Ho et al. 2020).

    L_simple = E ‖ε − ε_θ(√ᾱ_t x₀ + √(1−ᾱ_t) ε, t)‖²       x₀ in [−1, 1], t uniform in 0 … 999, β linear (eq. 14, section 4)

The network is Stable Diffusion's UNet without its transformers, so that there is nothing to attend to; the paper's attention
at 16×16 is left out, since at 7×7 a convolution reaches the whole digit soon enough.

    Settings(epochs=20, …), digits, folder  →  folder/unet/, strip.png, ddpm.png, samples/, log.jsonl, …

The strip: what the averaged weights make of the same noise, each row later in the training. It is filled while that goes on;
ddpm.png is the strip with a sheet of samples below.
"""
import pathlib
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image

from npdiffusion.diffusion.denoiser import Denoiser
from npdiffusion.diffusion.schedules.settings import NoiseSchedule
from npdiffusion.models.configs import UNetConfig
from npdiffusion.models.unet import UNet2DConditionModel
from npdiffusion.pictures.images import open_image, replace_png
from npdiffusion.training import initial, loop, model_folder, rates, runs
from npdiffusion.training.averages import Average
from npdiffusion.training.denoising import Denoising
from npdiffusion.training.digits import SIDE
from npdiffusion.training.optimizers import Adam
from npdiffusion.training.vae_lesson import COLUMNS, GAP, as_grey, per_epoch, tiled

UNET = UNetConfig(in_channels=1, out_channels=1, block_out_channels=(16, 32, 64), layers_per_block=1, cross_attention_dim=1,
                  cross_attention=(False,) * 3, heads=(1,) * 3, mid_depth=0, norm_num_groups=8, sample_size=SIDE)
SCHEDULE = NoiseSchedule(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, class_name="DDIMScheduler", own_sampler="ddim")
DECAY, WARM_UP = 0.995, 100                # of the average; steps
SAMPLING, ROWS, SHEET = 50, 8, 4           # steps of the sampler; rows of the strip, and of the sheet
PICTURE, STRIP, SAMPLES, WEIGHTS = "ddpm.png", "strip.png", "samples", "unet"


@dataclass(frozen=True)
class Settings:
    """What decides how a run goes; `data` is named for the run's folder, which refuses another."""
    data: str
    epochs: int = 20
    batch: int = 32
    rate: float = 2e-3
    seed: int = 0


class Lesson:
    """The UNet, its training on pictures (N, 28, 28) uint8, and what it draws"""
    def __init__(self, settings, images):
        self.settings, self.pixels = settings, 2 * as_grey(images) - 1
        self.steps = settings.epochs * per_epoch(len(images), settings.batch)
        self.denoising = Denoising(SCHEDULE)
        self.unet = UNet2DConditionModel(UNET)
        trained = initial.begin(self.unet, np.random.default_rng(settings.seed))
        warm_up = min(WARM_UP, self.steps // 10)
        self.training = loop.Training(self.loss, Adam(trained), average=Average(trained, DECAY), seed=settings.seed,
                                      rate=lambda step: rates.rate(step, settings.rate, self.steps, "cosine", warm_up))

    def predict(self, x, t):
        """ε_θ(x, t): the UNet, which wants hidden states of prompts, though it has no layer that reads them"""
        return self.unet(x, t, np.zeros((len(x), 1, 1), np.float32))

    def loss(self, number, rng):
        """Of a batch, see loop.Training"""
        x0 = self.pixels[loop.shuffled(number, len(self.pixels), self.settings.batch, self.settings.seed)]
        t, noise = self.denoising.draw(x0.shape, rng)
        return self.denoising.loss(self.predict(self.denoising.noised(x0, t, noise), t), x0, t, noise)

    def draw(self, count, number):
        """What the averaged weights make of noise by the paper's sampler → `count` digits, COLUMNS in a row (H, W) uint8

        number: of the noise, which is the same each time
        """
        plan, rng = SCHEDULE.plan("ddpm", SAMPLING), np.random.default_rng([self.settings.seed, number])

        def noise():
            return rng.standard_normal((count, SIDE, SIDE, 1), np.float32)
        denoise = Denoiser(lambda x, t, call: self.predict(x, t), plan)

        def within_range(x, level):
            """x̂₀ where pictures are, as in the paper's code: 1/√ᾱ makes small errors of ε̂ large ones at first"""
            return denoise(x, level).clip(-1, 1)
        self.training.average.swap()
        with np.errstate(all="ignore"):                    # what isn't finite is noticed by the training's next step
            *_, (x, _) = plan.sample(within_range, plan.start(noise()), noise)
        self.training.average.swap()
        return tiled(np.nan_to_num((x + 1) / 2).clip(0, 1))


def run(settings, digits, folder, listener=None):
    """Train, or go on where the folder's run was stopped → the path of its picture, or None if it was stopped

    listener(step, steps, {name: number}) is called after each step. UserErrors as of `loop.train`.
    """
    folder = pathlib.Path(folder)
    lesson = Lesson(settings, digits.images)
    moments = milestones(lesson.steps)

    def after(step):
        if step in moments:
            drawn = Image.fromarray(lesson.draw(COLUMNS, 0))
            (folder / SAMPLES).mkdir(exist_ok=True)
            replace_png(drawn, row(folder, step))
            replace_png(Image.fromarray(strip(folder, moments)), folder / STRIP)

    with runs.Run(folder, asdict(settings)) as kept:
        if not loop.train(lesson.training, kept, lesson.steps,
                          listener and (lambda values: listener(values["step"], lesson.steps, values)), after):
            return None
        below = lesson.draw(SHEET * COLUMNS, 1)
        gap = np.full((GAP, below.shape[1]), 128, np.uint8)
        replace_png(Image.fromarray(np.concatenate([strip(folder, moments), gap, below])), folder / PICTURE)
        lesson.training.average.swap()
        model_folder.write_part(folder / WEIGHTS, "unet", lesson.unet)
    return folder / PICTURE


def row(folder, step):
    """The file of a row of the strip"""
    return folder / SAMPLES / f"{step:06}.png"


def strip(folder, moments):
    """All rows, one below the other; those that are not there, or not yet, are black → (H, W) uint8"""
    paths = [row(folder, step) for step in moments]
    return np.concatenate([np.asarray(open_image(path))[..., 0] if path.exists() else np.zeros((SIDE, COLUMNS * SIDE), np.uint8)
                           for path in paths])


def milestones(steps):
    """The steps after which a row is drawn: ever farther apart, since most is learnt early; the last one is among them"""
    return sorted({max(1, round(steps * (number / ROWS) ** 2.5)) for number in range(1, ROWS + 1)})
