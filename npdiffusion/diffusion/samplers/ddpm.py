"""Over time steps, one call of the model each: ddpm walks back through the training's noise, ddim needs none.

    x = √ᾱ_t x₀ + √(1 − ᾱ_t) ε      a = ᾱ_t, a_prev = ᾱ_{t−1} of the papers; "t − 1" is the next time step that is visited
"""
from math import sqrt


def ddpm(denoise, x, steps, noise):
    """x_{t−1} ~ q(x_{t−1} | x_t, x̂₀) = N(μ̃, β̃).      Ho et al. 2020, arXiv:2006.11239, equations 6 and 7

    steps: (t, ᾱ_t, ᾱ_{t−1}), descending t; the last ᾱ_{t−1} is 1.      Derived in docs/notes/05-posterior.md
    """
    for t, a, a_prev in steps:
        x0 = denoise(x, t)
        beta = 1 - a / a_prev
        x = sqrt(a_prev) * beta / (1 - a) * x0 + sqrt(1 - beta) * (1 - a_prev) / (1 - a) * x
        if a_prev < 1:
            x = x + sqrt((1 - a_prev) / (1 - a) * beta) * noise()
        yield x, x0


def ddim(denoise, x, steps, noise, eta=0.0):
    """x_{t−1} = √ᾱ_{t−1} x̂₀ + √(1 − ᾱ_{t−1} − σ²) ε̂ + σ z      Song et al. 2021, arXiv:2010.02502, equation 12

    η = 0 is deterministic, η = 1 has the noise σ of DDPM (equation 16).    steps: (t, ᾱ_t, ᾱ_{t−1}), descending t.
    Derived in docs/notes/08-samplers.md
    """
    for t, a, a_prev in steps:
        x0 = denoise(x, t)
        eps = (x - sqrt(a) * x0) / sqrt(1 - a)
        sigma = eta * sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev))
        x = sqrt(a_prev) * x0 + sqrt(1 - a_prev - sigma**2) * eps
        if sigma > 0:
            x = x + sigma * noise()
        yield x, x0
