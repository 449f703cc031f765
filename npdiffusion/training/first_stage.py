"""The first stage of `train sd`: the autoencoder, after which diffusion runs on its latents (Rombach et al. 2021, section 3.1).

    L = |x̂ − x| + 10 (x̂ − x)² + 10⁻³ KL(q(z|x) ‖ N(0, 1))      means over pixels, and over latent numbers
    x̂ = decoder(z),   z = μ + σ ε,   ε ~ N(0, 1)

A small KL keeps latents in one place without blurring the picture; the weight of a proper ELBO would be a thousand times
that (docs/notes/03-autoencoder.md). Then each picture is encoded once, and latents · scaling_factor have deviation 1.
"""
import pathlib
from dataclasses import asdict, dataclass, replace

import numpy as np

from npdiffusion.checkpoints.safetensors_file import read_file
from npdiffusion.errors import UserError
from npdiffusion.models.configs import VAEConfig
from npdiffusion.models.vae import AutoencoderKL
from npdiffusion.training import initial, loop, rates, runs
from npdiffusion.training.averages import Average
from npdiffusion.training.compositions import SIDE, as_pixels
from npdiffusion.training.optimizers import AdamW

CONFIG = VAEConfig(block_out_channels=(16, 32, 64), layers_per_block=1, norm_num_groups=8, scaling_factor=1.0,
                   sample_size=SIDE)
SQUARED, KL = 10.0, 1e-3
FOLDER, LATENTS = "first-stage", "latents.safetensors"


@dataclass(frozen=True)
class Settings:
    """What decides how this stage goes; see sd_lesson.Settings."""
    data: str
    pictures: int
    steps: int
    batch: int
    rate: float
    seed: int


class FirstStage:
    """The autoencoder and its training on pictures (N, 32, 32) uint8"""
    def __init__(self, settings, images):
        self.settings, self.images = settings, images
        self.vae = AutoencoderKL(CONFIG)
        trained = initial.begin(self.vae, np.random.default_rng([settings.seed, 1]))
        self.training = loop.Training(
            self.loss, AdamW(trained, decay=0.0), average=Average(trained, 0.99), seed=settings.seed,
            rate=lambda step: rates.rate(step, settings.rate, settings.steps, "cosine", min(20, settings.steps // 10)))

    def loss(self, number, rng):
        """Of a batch, see loop.Training"""
        x = as_pixels(self.images[loop.shuffled(number, len(self.images), self.settings.batch, self.settings.seed)])
        mean, logvar = self.vae.encode(x)
        z = mean + np.exp(0.5 * logvar) * rng.standard_normal(mean.shape, np.float32)
        difference = self.vae.decode(z) - x
        divergence = (0.5 * (np.square(mean) + np.exp(logvar) - 1 - logvar)).mean()
        return np.absolute(difference).mean() + SQUARED * np.square(difference).mean() + KL * divergence

    def run(self, folder, listener=None):
        """Train in folder/first-stage, and encode → moments (2, N, 8, 8, 4), mean and deviation as diffusion has them, or None
        if it was stopped. `vae` has the averaged weights and its scaling factor then."""
        folder, steps = pathlib.Path(folder, FOLDER), self.settings.steps
        with runs.Run(folder, asdict(self.settings)) as run:
            if not loop.train(self.training, run, steps, listener and (lambda values: listener(values["step"], steps, values))):
                return None
            self.training.average.swap()
            moments = kept(folder / LATENTS, len(self.images), lambda: encoded(self.vae, self.images))
        scale = deviation(*moments)
        self.vae.config = replace(CONFIG, scaling_factor=1 / scale)
        return moments * np.float32(1 / scale)


def encoded(vae, images, size=100):
    """Mean and deviation of z for pictures (N, 32, 32) → (2, N, h, w, C) float32"""
    parts = [vae.encode(as_pixels(images[start:start + size])) for start in range(0, len(images), size)]
    return np.stack([np.concatenate([mean for mean, _ in parts]),
                     np.exp(0.5 * np.concatenate([logvar for _, logvar in parts]))])


def deviation(mean, spread):
    """Of samples of z: √(var μ + mean σ²), a Python float"""
    return float(np.sqrt(mean.var(dtype=np.float64) + np.square(spread, dtype=np.float64).mean()))


def kept(path, count, make):
    """The moments in a file, or those that make() gives, which are kept in it. UserError for a damaged file."""
    from safetensors.numpy import save_file
    if not path.exists():
        moments = make()
        runs.written(path, lambda beside: save_file({"moments": moments}, beside))
        return moments
    side = SIDE // CONFIG.reduction
    tensors = read_file(path)
    if [*tensors] != ["moments"] or tensors["moments"].shape != (2, count, side, side, CONFIG.latent_channels):
        raise UserError(f"{path}: not the latents of this training; without this file they are made anew")
    return tensors["moments"]()
