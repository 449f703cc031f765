"""`npdiffusion train vae`: the VAE of digit_vae.py, trained, measured on held-out pictures, and drawn.

    Settings(latent=20, epochs=40, …), digits, folder  →  folder/vae.safetensors, vae.png, log.jsonl, …

The picture, from above: held-out pictures and what is left of them after 20 numbers; samples of the prior; walks
from one held-out picture to another; and for two latent numbers their whole plane.
"""
import json
import math
import pathlib
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image

from npdiffusion.models import parameters
from npdiffusion.pictures.images import replace_png
from npdiffusion.training import initial, loop, rates, runs
from npdiffusion.training.digit_vae import DigitVAE, drawn, probability
from npdiffusion.training.digits import SIDE
from npdiffusion.training.optimizers import Adam

COLUMNS, GAP = 20, 6                       # pictures in a row of the sheet, pixels between its parts
WEIGHTS, PICTURE = "vae.safetensors", "vae.png"
WARM_UP = 20                               # steps; without, rounding alone moves the fifth step's loss by 0.002 nats


@dataclass(frozen=True)
class Settings:
    """What decides how a run goes; `data` is named for the run's folder, which refuses another."""
    data: str
    latent: int = 20
    epochs: int = 30
    batch: int = 64
    rate: float = 3e-3
    targets: str = "binary"
    seed: int = 0


def run(settings, digits, folder, listener=None):
    """Train, or go on where the folder's run was stopped → the held-out ELBO in nats per image, or None if it was stopped

    listener(step, steps, {name: number}) is called after each step. UserErrors as of `loop.train`.
    """
    folder = pathlib.Path(folder)
    model = DigitVAE(settings.latent)
    trained = initial.begin(model, np.random.default_rng(settings.seed))
    grey, held_out = as_grey(digits.images), as_grey(digits.held_out_images)
    steps = settings.epochs * per_epoch(len(grey), settings.batch)
    training = loop.Training(loss_of(model, grey, settings), Adam(trained), clip=math.inf, seed=settings.seed,
                             rate=lambda step: rate(step, steps, settings))

    def after(step):
        if step % per_epoch(len(grey), settings.batch) == 0 or step == steps:
            likelihood, divergence = measure(model, held_out, settings)
            return {"held-out ELBO": likelihood - divergence, "held-out KL": divergence}

    with runs.Run(folder, asdict(settings)) as run:
        if not loop.train(training, run, steps, listener and (lambda values: listener(values["step"], steps, values)), after):
            return None
        write_weights(folder / WEIGHTS, model, asdict(settings))
        replace_png(picture(model, held_out, settings), folder / PICTURE)
    likelihood, divergence = measure(model, held_out, settings)
    return likelihood - divergence


def rate(step, steps, settings):
    """The learning rate of a step of so many. Adam's first ones are ±rate for every weight, however small its gradient: at the
    full rate these signs, which are rounding's where a gradient is next to nothing, would tell in the loss."""
    return rates.rate(step, settings.rate, steps, "cosine", min(WARM_UP, steps // 10))


def as_grey(images):
    """(N, 28, 28) uint8 → (N, 28, 28, 1) float32 in [0, 1]"""
    return images[..., None].astype(np.float32) / 255


def per_epoch(count, batch):
    """How many batches an epoch of so many pictures has."""
    return count // min(batch, count)


def loss_of(model, grey, settings):
    """loss(number, rng) of a batch: −ELBO in nats per image"""
    def loss(number, rng):
        batch = grey[loop.shuffled(number, len(grey), settings.batch, settings.seed)]
        targets = drawn(batch, settings.targets, rng)
        likelihood, divergence = model.elbo(targets, rng.standard_normal((len(batch), settings.latent), np.float32))
        return divergence - likelihood
    return loss


def measure(model, grey, settings, size=500):
    """Mean log p(x|z) and KL of pictures, one sample of each, the same each time      → two Python floats, nats per image"""
    rng, sums = np.random.default_rng([settings.seed, 1]), np.zeros(2)
    for start in range(0, len(grey), size):
        batch = grey[start:start + size]
        targets = drawn(batch, settings.targets, rng)
        values = model.elbo(targets, rng.standard_normal((len(batch), settings.latent), np.float32))
        sums += np.array(values, np.float64) * len(batch)
    return tuple((sums / len(grey)).tolist())


def write_weights(path, model, settings):
    """The parameters under their names, float32; what they are of stands in the file's metadata."""
    from safetensors.numpy import save_file
    tensors = {name: np.ascontiguousarray(value) for name, value in initial.of(model).items()}
    runs.written(path, lambda beside: save_file(tensors, beside, {"DigitVAE": json.dumps(settings)}))


def read_weights(path, latent):
    """A `DigitVAE` from its file; UserError for another file."""
    from npdiffusion.checkpoints.safetensors_file import read_file
    model = DigitVAE(latent)
    parameters.load(model, read_file(path), path)
    return model


# ---- the sheet

def picture(model, held_out, settings):
    """The sheet that is described above → PIL image, grey"""
    rng = np.random.default_rng([settings.seed, 2])
    shown = held_out[rng.permutation(len(held_out))[:COLUMNS]]
    means = model.encoder(shown)[0]
    parts = [(shown, decoded(model, means)),
             decoded(model, rng.standard_normal((4 * COLUMNS, settings.latent), np.float32)),
             decoded(model, walks(means))]
    if settings.latent == 2:
        parts.append(decoded(model, plane()))
    bands = [np.concatenate([*map(tiled, part)]) if isinstance(part, tuple) else tiled(part) for part in parts]
    gap = np.full((GAP, bands[0].shape[1]), 128, np.uint8)
    return Image.fromarray(np.concatenate([row for band in bands for row in (band, gap)][:-1]))


def decoded(model, z):
    """Latents (N, D) → (N, 28, 28, 1) in [0, 1]: the probability of ink"""
    return probability(model.decoder(np.asarray(z, np.float32)))


def walks(means):
    """Three ways between latents (N, D), by equal steps along a straight line      → (3 · COLUMNS, D)"""
    share = np.linspace(0, 1, COLUMNS, dtype=np.float32)[:, None]
    return np.concatenate([(1 - share) * means[2 * i % len(means)] + share * means[(2 * i + 1) % len(means)]
                           for i in range(3)])


def plane():
    """The quantiles of N(0, 1) in both directions, so that each cell is as likely      → (COLUMNS², 2)"""
    from scipy.special import ndtri
    quantiles = ndtri((np.arange(COLUMNS) + 0.5) / COLUMNS)
    return np.stack(np.meshgrid(quantiles, quantiles[::-1]), axis=-1).reshape(-1, 2)


def tiled(pictures):
    """(N, 28, 28, 1) in [0, 1] → one picture (rows · 28, COLUMNS · 28), uint8; places that stay empty are black"""
    rows = math.ceil(len(pictures) / COLUMNS)
    cells = np.zeros((rows * COLUMNS, SIDE, SIDE), np.float32)
    cells[:len(pictures)] = pictures[..., 0]
    whole = cells.reshape(rows, COLUMNS, SIDE, SIDE).transpose(0, 2, 1, 3).reshape(rows * SIDE, -1)
    return (255 * whole).round().astype(np.uint8)
