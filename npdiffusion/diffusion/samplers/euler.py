"""Over σ, one explicit step each: euler, and euler_a with fresh noise.

    dx/dσ = (x − D(x; σ)) / σ      the probability flow, equation 3 of Karras et al. 2022 (arXiv:2206.00364)

Derived in docs/notes/08-samplers.md.
"""
from itertools import pairwise

from npdiffusion.diffusion.samplers.ancestral import ancestral_step


def euler(denoise, x, sigmas):
    """One explicit step per interval.      Karras et al. 2022, arXiv:2206.00364, algorithm 1 without its correction"""
    for sigma, sigma_next in pairwise(sigmas):
        x0 = denoise(x, sigma)
        x = x + (sigma_next - sigma) * (x - x0) / sigma
        yield x, x0


def euler_a(denoise, x, sigmas, noise):
    """Ancestral: Euler down to σ_down, then fresh noise of size σ_up (see ancestral.py). On equal levels it is DDPM."""
    for sigma, sigma_next in pairwise(sigmas):
        sigma_down, sigma_up = ancestral_step(sigma, sigma_next)
        x0 = denoise(x, sigma)
        x = x + (sigma_down - sigma) * (x - x0) / sigma
        if sigma_up > 0:
            x = x + sigma_up * noise()
        yield x, x0
