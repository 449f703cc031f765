"""Over σ, two calls of the model per step: the slope is looked up a second time, further on.

    dx/dσ = (x − D(x; σ)) / σ      the probability flow, equation 3 of Karras et al. 2022 (arXiv:2206.00364)

At σ = 0 the slope is 0 / 0, so that the last step of each is Euler's. What an order is: docs/notes/08-samplers.md
"""
from itertools import pairwise
from math import sqrt

from npdiffusion.diffusion.samplers.ancestral import ancestral_step
from npdiffusion.diffusion.samplers.between import Between


def heun(denoise, x, sigmas):
    """The trapezoidal rule, its far end found by an Euler step.      Karras et al. 2022, arXiv:2206.00364, alg. 1"""
    for sigma, sigma_next in pairwise(sigmas):
        x0 = denoise(x, sigma)
        slope = (x - x0) / sigma
        x_next = x + (sigma_next - sigma) * slope
        if sigma_next > 0:
            x0 = denoise(x_next, sigma_next)
            slope_next = (x_next - x0) / sigma_next
            x_next = x + (sigma_next - sigma) * (slope + slope_next) / 2
        x = x_next
        yield x, x0


def dpm2(denoise, x, sigmas):
    """The midpoint rule, the middle taken in log σ: DPM-Solver-2.      Lu et al. 2022, arXiv:2206.00927, algorithm 1

        x_mid = x + (σ_mid − σ) d(x, σ)      x_next = x + (σ_next − σ) d(x_mid, σ_mid)      σ_mid = √(σ σ_next)

    In k-diffusion's form, whose second slope acts along the whole interval of σ.
    """
    for sigma, sigma_next in pairwise(sigmas):
        x, x0 = _midpoint(denoise, x, sigma, sigma_next)
        yield x, x0


def dpm2_a(denoise, x, sigmas, noise):
    """Ancestral: dpm2 down to σ_down, then fresh noise of size σ_up (see ancestral.py).      k-diffusion"""
    for sigma, sigma_next in pairwise(sigmas):
        sigma_down, sigma_up = ancestral_step(sigma, sigma_next)
        x, x0 = _midpoint(denoise, x, sigma, sigma_down)
        if sigma_up > 0:
            x = x + sigma_up * noise()
        yield x, x0


def _midpoint(denoise, x, sigma, sigma_next):
    x0 = denoise(x, sigma)
    slope = (x - x0) / sigma
    if sigma_next > 0:
        middle = sqrt(sigma * sigma_next)
        x_mid = x + (middle - sigma) * slope
        x0 = denoise(x_mid, Between(middle))
        slope = (x_mid - x0) / middle
    return x + (sigma_next - sigma) * slope, x0
