"""Over σ, one explicit step each: euler, and euler_a with fresh noise.

    dx/dσ = (x − D(x; σ)) / σ      the probability flow, equation 3 of Karras et al. 2022 (arXiv:2206.00364)
"""
from itertools import pairwise
from math import sqrt


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
