"""Ancestral steps: further down than σ_next, then fresh noise back up to it."""
from math import sqrt


def ancestral_step(sigma, sigma_next):
    """σ_down, σ_up with σ_next² = σ_down² + σ_up².

    σ_up is the standard deviation of q(x_next | x, x₀), DDPM's β̃ (Ho et al. 2020, arXiv:2006.11239, equation 7), for
    x = x₀ + σ ε: docs/notes/05-posterior.md. The method is k-diffusion's.
    """
    return sigma_next**2 / sigma, sigma_next * sqrt(1 - sigma_next**2 / sigma**2)
