"""Gaussian noise from a seed: the same numbers as other programs, so that a seed gives the same picture everywhere.

    torch_numbers.py   torch's CPU generator, as with diffusers
    philox.py          a GPU's, as with AUTOMATIC1111's web interface
    latents.py         who draws what when, sub-seeds
    brownian.py        noise that follows a path

A generator is an object with `normal(shape)` → float32 of that shape; successive calls continue the sequence.
Axes: N images, H × W latent pixels, C channels (last).
"""
from collections.abc import Sequence
from typing import Any

import numpy as np

from npdiffusion.diffusion.noise.latents import LatentNoise
from npdiffusion.diffusion.noise.philox import PhiloxGenerator
from npdiffusion.diffusion.noise.seeds import wrapped
from npdiffusion.diffusion.noise.torch_numbers import TorchGenerator
from npdiffusion.errors import UserError
from npdiffusion.settings import RNGS


class NumpyGenerator:
    """The numbers of numpy.random.default_rng(seed).standard_normal(shape, dtype=float32).

    Takes the seeds that TorchGenerator takes; all 64 bits count.
    """

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(wrapped(seed))

    def normal(self, shape: int | tuple[int, ...]) -> np.ndarray:
        """Standard normal numbers: shape (an int or a tuple) → float32 array of that shape, filled in C order."""
        return self._generator.standard_normal(shape, dtype=np.float32)


GENERATORS = dict(zip(RNGS, (TorchGenerator, PhiloxGenerator, NumpyGenerator)))


def generator(kind: str, seed: int) -> Any:
    """A seeded generator of a kind in GENERATORS. Raises UserError for another kind or a seed out of range."""
    return _find(kind)(seed)


def latent_noise(kind: str, seeds: Sequence[int], height: int, width: int, channels: int = 4,
                 subseeds: Sequence[int] | None = None, strength: float = 0.0, first: np.ndarray | None = None) -> LatentNoise:
    """The `LatentNoise` of a batch: a picture for each seed; kind as in GENERATORS. UserError like `generator`."""
    return LatentNoise(_find(kind), seeds, height, width, channels, subseeds, strength, kind == "a1111", first)


def _find(kind):
    if kind not in GENERATORS:
        raise UserError(f"there is no random generator {kind!r}; choose one of {', '.join(GENERATORS)}")
    return GENERATORS[kind]
