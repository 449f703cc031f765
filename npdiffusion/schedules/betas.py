"""How much noise there is at each time step of the training.

    x_t = √ᾱ_t x₀ + √(1 − ᾱ_t) ε      ᾱ_t = ∏ (1 − β_s), s ≤ t      DDPM (Ho et al. 2020, arXiv:2006.11239), equation 4

Arrays over the T time steps of the training, float64.
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
