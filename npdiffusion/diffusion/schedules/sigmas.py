"""Rules by which σ goes down, whatever the training's time steps are.

σ is the noise on an x₀ of unscaled size, x = x₀ + σ ε, of Karras et al. 2022 (arXiv:2206.00364). Each rule gives `steps`
descending σ from sigma_max to sigma_min, float64 (steps,), without the 0 at which a sampler ends.
"""
import math

import numpy as np


def karras_sigmas(sigma_max, sigma_min, steps, rho=7.0):
    """Even in σ^{1/ρ}, so denser near 0: equation 5 of Karras et al. 2022 (arXiv:2206.00364).

        σ_i = (σ_max^{1/ρ} + i/(n−1) (σ_min^{1/ρ} − σ_max^{1/ρ}))^ρ
    """
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (high + np.linspace(0, 1, steps) * (low - high)) ** rho


def exponential_sigmas(sigma_max, sigma_min, steps):
    """Even in log σ."""
    return np.exp(np.linspace(math.log(sigma_max), math.log(sigma_min), steps))


def beta_sigmas(sigma_max, sigma_min, steps, alpha=0.6, beta=0.6):
    """Quantiles of the distribution Beta(α, β), so denser at both ends: Lee et al. 2024, arXiv:2407.12173."""
    from scipy.special import betaincinv  # the inverse of the distribution's function
    return sigma_min + betaincinv(alpha, beta, 1 - np.linspace(0, 1, steps)) * (sigma_max - sigma_min)


RULES = {"karras": karras_sigmas, "exponential": exponential_sigmas, "beta": beta_sigmas}
