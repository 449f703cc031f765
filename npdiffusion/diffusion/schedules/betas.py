"""How much noise there is at each time step of the training.

    x_t = √ᾱ_t x₀ + √(1 − ᾱ_t) ε      ᾱ_t = ∏ (1 − β_s), s ≤ t      DDPM (Ho et al. 2020, arXiv:2006.11239), equation 4

Arrays over the T time steps of the training, float64. Derived in docs/notes/04-forward-process.md.
"""
import math

import numpy as np

BETA_SCHEDULES = ("linear", "scaled_linear")


def betas(kind, start, end, T):
    """β from start to end: growing linearly ("linear"), or √β doing so ("scaled_linear", Stable Diffusion's)     (T,)"""
    if kind == "linear":
        return np.linspace(start, end, T)
    return np.linspace(math.sqrt(start), math.sqrt(end), T) ** 2


def alphas_cumprod(betas):
    """ᾱ, descending      (T,) → (T,)"""
    return np.cumprod(1 - betas)


def zero_terminal_snr(alphas_cumprod):
    """√ᾱ shifted and stretched so that its last is 0 and its first stays: at the last time step nothing of the picture
    is left (Lin et al. 2023, arXiv:2305.08891, algorithm 1), and pictures may be as dark or bright as they like.
    """
    root = np.sqrt(alphas_cumprod)
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
