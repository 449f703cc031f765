"""Samplers: from noise to a picture, given a denoiser and a list of noise levels.

Each is a generator that yields the state after every step, so previews, progress and stopping belong to the caller.
Two families, by the scale of their state (see denoiser.py):

    ddpm  ddim  pndm               x = √ᾱ_t x₀ + √(1 − ᾱ_t) ε     walk over time steps: (t, ᾱ_t, ᾱ_{t−1}) for each step
    euler  euler_a  heun  dpm++2m  x = x₀ + σ ε                   walk over descending σ, the last of which is 0

    denoise(x, t) or denoise(x, σ) → x̂₀, an array like x          noise() → a fresh array of N(0, 1) like x

Arrays are of any shape and keep their dtype: levels are Python floats. The x that is passed in isn't modified.
"""
import difflib
import math
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import Callable

from .errors import UserError


# ---- over time steps. Legend: a = ᾱ_t, a_prev = ᾱ_{t−1} of the papers; "t − 1" is the next time step that is visited.

def ddpm(denoise, x, steps, noise):
    """x_{t−1} ~ q(x_{t−1} | x_t, x̂₀) = N(μ̃, β̃).      Ho et al. 2020, arXiv:2006.11239, equations 6 and 7

    steps: (t, ᾱ_t, ᾱ_{t−1}), descending t; the last ᾱ_{t−1} is 1.
    """
    for t, a, a_prev in steps:
        x0 = denoise(x, t)
        beta = 1 - a / a_prev
        x = sqrt(a_prev) * beta / (1 - a) * x0 + sqrt(1 - beta) * (1 - a_prev) / (1 - a) * x
        if a_prev < 1:
            x = x + sqrt((1 - a_prev) / (1 - a) * beta) * noise()
        yield x


def ddim(denoise, x, steps, noise, eta=0.0):
    """x_{t−1} = √ᾱ_{t−1} x̂₀ + √(1 − ᾱ_{t−1} − σ²) ε̂ + σ z      Song et al. 2021, arXiv:2010.02502, equation 12

    η = 0 is deterministic, η = 1 has the noise σ of DDPM (equation 16).    steps: (t, ᾱ_t, ᾱ_{t−1}), descending t.
    """
    for t, a, a_prev in steps:
        x0 = denoise(x, t)
        eps = (x - sqrt(a) * x0) / sqrt(1 - a)
        sigma = eta * sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev))
        x = sqrt(a_prev) * x0 + sqrt(1 - a_prev - sigma**2) * eps
        if sigma > 0:
            x = x + sigma * noise()
        yield x


ADAMS_BASHFORTH = (                                          # weights of the slopes seen so far, the newest first
    (1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def pndm(denoise, x, steps, velocity=False):
    """PLMS: a slope extrapolated from the last four goes through DDIM's step.      Liu et al. 2022, arXiv:2202.09778

        ε̄ = (55 ε_t − 59 ε_{t+1} + 37 ε_{t+2} − 9 ε_{t+3}) / 24      Adams-Bashforth
        x_{t−1} = √ᾱ_{t−1} x̂₀(ε̄) + √(1 − ᾱ_{t−1}) ε̄                 φ of the paper, equation 12 of DDIM's

    It starts, as Stable Diffusion's own code does, with an improved Euler step (two looks at the first interval), not
    with the paper's Runge-Kutta steps; then come orders 2 and 3.
    steps: (t, ᾱ_t, ᾱ_{t−1}); the second entry is that other look, its t the far end of the first interval. So n > 1
    entries are n calls and give n − 1 states.
    velocity: the model predicts v. diffusers then extrapolates v in place of ε, which gives other numbers.
    """
    def slope(x, t, a):                                      # ε, or v = √ᾱ ε − √(1 − ᾱ) x₀
        x0 = denoise(x, t)
        eps = (x - sqrt(a) * x0) / sqrt(1 - a)
        return sqrt(a) * eps - sqrt(1 - a) * x0 if velocity else eps

    def phi(x, slope, a, a_prev):
        eps = sqrt(a) * slope + sqrt(1 - a) * x if velocity else slope
        x0 = (x - sqrt(1 - a) * eps) / sqrt(a)
        return sqrt(a_prev) * x0 + sqrt(1 - a_prev) * eps

    (t, a, a_prev), *steps = steps
    recent = [slope(x, t, a)]                                # the newest first
    x_far = phi(x, recent[0], a, a_prev)
    if steps:
        (t, a, a_prev), *steps = steps
        x_far = phi(x, (recent[0] + slope(x_far, t, a_prev)) / 2, a, a_prev)
    x = x_far
    yield x

    for t, a, a_prev in steps:
        recent = [slope(x, t, a), *recent[:3]]
        x = phi(x, sum(w * s for w, s in zip(ADAMS_BASHFORTH[len(recent) - 1], recent)), a, a_prev)
        yield x


# ---- over σ: the probability flow dx/dσ = (x − D(x; σ)) / σ, equation 3 of Karras et al. 2022 (arXiv:2206.00364)

def euler(denoise, x, sigmas):
    """One explicit step per interval.      Karras et al. 2022, arXiv:2206.00364, algorithm 1 without its correction"""
    for sigma, sigma_next in pairwise(sigmas):
        x = x + (sigma_next - sigma) * (x - denoise(x, sigma)) / sigma
        yield x


def euler_a(denoise, x, sigmas, noise):
    """Ancestral: Euler down to σ_down, then fresh noise of size σ_up back to σ_next, σ_next² = σ_down² + σ_up².

    σ_up is the standard deviation of q(x_next | x, x₀), DDPM's β̃ (arXiv:2006.11239, equation 7) for x = x₀ + σ ε. The
    method is k-diffusion's; on the same levels it equals DDPM.
    """
    for sigma, sigma_next in pairwise(sigmas):
        sigma_up = sigma_next * sqrt(1 - sigma_next**2 / sigma**2)
        sigma_down = sigma_next**2 / sigma
        x = x + (sigma_down - sigma) * (x - denoise(x, sigma)) / sigma
        if sigma_up > 0:
            x = x + sigma_up * noise()
        yield x


def heun(denoise, x, sigmas):
    """The trapezoidal rule, its far end found by an Euler step.      Karras et al. 2022, arXiv:2206.00364, alg. 1"""
    for sigma, sigma_next in pairwise(sigmas):
        slope = (x - denoise(x, sigma)) / sigma
        x_next = x + (sigma_next - sigma) * slope
        if sigma_next > 0:                                   # the slope at σ = 0 is 0 / 0: the last step stays Euler's
            slope_next = (x_next - denoise(x_next, sigma_next)) / sigma_next
            x_next = x + (sigma_next - sigma) * (slope + slope_next) / 2
        x = x_next
        yield x


def dpmpp_2m(denoise, x, sigmas):
    """DPM-Solver++(2M): x's linear part exactly, D extrapolated to mid-step.      Lu et al. 2022, arXiv:2211.01095

        x_next = (σ_next/σ) x − (e^{−h} − 1) D̄      D̄ = D + (h / 2h_prev)(D − D_prev)      algorithm 2

    λ = −log σ, h = λ_next − λ, so e^{−h} = σ_next/σ. The first step has no D_prev, the last no finite h: D̄ = D there.
    """
    denoised_prev = h_prev = None
    for sigma, sigma_next in pairwise(sigmas):
        denoised = extrapolated = denoise(x, sigma)
        if sigma_next > 0:
            h = math.log(sigma / sigma_next)
            if h_prev is not None:
                extrapolated = denoised + h / (2 * h_prev) * (denoised - denoised_prev)
            denoised_prev, h_prev = denoised, h
        x = sigma_next / sigma * x + (1 - sigma_next / sigma) * extrapolated
        yield x


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
