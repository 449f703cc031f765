"""Samplers: from noise to a picture, given a denoiser and a list of noise levels.

Each is a generator that yields the state after every step, so previews, progress and stopping belong to the caller.
Two families, by the scale of their state (see denoiser.py):

    ddpm  ddim  pndm               x = √ᾱ_t x₀ + √(1 − ᾱ_t) ε     walk over time steps: (t, ᾱ_t, ᾱ_{t−1}) for each step
    euler  euler_a  heun  dpm++2m  x = x₀ + σ ε                   walk over descending σ, the last of which is 0

    denoise(x, t) or denoise(x, σ) → x̂₀, an array like x          noise() → a fresh array of N(0, 1) like x

Arrays are of any shape and keep their dtype: levels are Python floats. The x that is passed in isn't modified.
"""
import difflib
from dataclasses import dataclass
from typing import Callable

from npdiffusion.errors import UserError
from npdiffusion.samplers.ddpm import ddim, ddpm
from npdiffusion.samplers.dpm_solver import dpmpp_2m
from npdiffusion.samplers.euler import euler, euler_a
from npdiffusion.samplers.pndm import pndm
from npdiffusion.samplers.two_stage import heun


@dataclass(frozen=True)
class Sampler:
    """What there is to know of a sampler besides its algorithm."""
    function: Callable
    levels: str                   # the rule by which a schedule lays out its noise levels, see schedules.py
    takes_noise: bool
    summary: str

    @property
    def karras(self):
        """Whether it can walk over the σ of Karras et al.; the others need the time steps of the training."""
        return self.levels in ("k-diffusion", "dpm-solver")

    @property
    def spacing(self):
        """The timestep_spacing that diffusers takes for it when the checkpoint's file names none."""
        return "linspace" if self.karras else "leading"


SAMPLERS = {
    "ddpm": Sampler(ddpm, "ddpm", True, "random, order 1, 1 call per step: the training's noise taken back"),
    "ddim": Sampler(ddim, "ddim", True, "deterministic (random if eta > 0), order 1, 1 call per step"),
    "pndm": Sampler(pndm, "pndm", False, "deterministic, order 2 or more, 1 call per step and 1 more: SD v1's own"),
    "euler": Sampler(euler, "k-diffusion", False, "deterministic, order 1, 1 call per step"),
    "euler_a": Sampler(euler_a, "k-diffusion", True, "random, order 1, 1 call per step: Euler with fresh noise"),
    "heun": Sampler(heun, "k-diffusion", False, "deterministic, order 2, 2 calls per step (1 in the last)"),
    "dpm++2m": Sampler(dpmpp_2m, "dpm-solver", False, "deterministic, order 2, 1 call per step"),
}


def find(name):
    """The `Sampler` of that name; UserError names the nearest known one if there is none."""
    if name in SAMPLERS:
        return SAMPLERS[name]
    near = difflib.get_close_matches(str(name), SAMPLERS, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"unknown sampler {name!r}: {hint}known are {', '.join(SAMPLERS)}")
