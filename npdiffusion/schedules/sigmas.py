"""Rules by which σ goes down, whatever the training's time steps are.

σ is the noise on an x₀ of unscaled size, x = x₀ + σ ε, of Karras et al. 2022 (arXiv:2206.00364). Each rule gives `steps`
descending σ, float64, without the 0 at which a sampler ends.
"""
import numpy as np


def karras_sigmas(sigma_max, sigma_min, steps, rho=7.0):
    """Even in σ^{1/ρ}, so denser near 0: equation 5 of Karras et al. 2022 (arXiv:2206.00364).

        σ_i = (σ_max^{1/ρ} + i/(n−1) (σ_min^{1/ρ} − σ_max^{1/ρ}))^ρ
    """
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (high + np.linspace(0, 1, steps) * (low - high)) ** rho
