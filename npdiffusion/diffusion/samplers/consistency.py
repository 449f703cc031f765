"""Over time steps, for models distilled to jump: consistency models, which need one to eight steps.

    x = √ᾱ_t x₀ + √(1 − ᾱ_t) ε      a = ᾱ_t, a_prev = ᾱ of the next time step that is visited

Such a model maps every state on a path of the flow to the path's end, x₀. One call gives a picture; more improve it:
noise is added again, less each time, and the model jumps anew.
"""
from math import sqrt

SIGMA_DATA = 0.5


def lcm(denoise, x, steps, noise, timestep_scaling=10.0):
    """Latent consistency models.      Luo et al. 2023, arXiv:2310.04378; sampling is algorithm 1 of arXiv:2303.01469

        f(x, t) = c_skip(t) x + c_out(t) D(x, t)      c_skip = σ_d² / (s² + σ_d²)      c_out = s / √(s² + σ_d²)

    s = timestep_scaling · t, so that f(x, 0) = x.    steps: (t, ᾱ_t, ᾱ_{t−1}), descending t; the last ᾱ_{t−1} is 1.
    """
    for t, _, a_prev in steps:
        s = timestep_scaling * t
        size = s**2 + SIGMA_DATA**2
        x0 = denoise(x, t)
        x = SIGMA_DATA**2 / size * x + s / sqrt(size) * x0
        if a_prev < 1:
            x = sqrt(a_prev) * x + sqrt(1 - a_prev) * noise()
        yield x, x0


def tcd(denoise, x, steps, noise, eta=0.0):
    """Trajectory consistency distillation.      Zheng et al. 2024, arXiv:2402.19159, algorithm 1 (η is its γ)

    Jumps not to the end but to a time step s = ⌊(1 − η) (t − 1)⌋ below the next one, then adds noise up to that one.
    η = 0 adds none; more noise hides the errors of more steps.    steps: (t, ᾱ_t, ᾱ_{t−1}, ᾱ_s), descending t.
    """
    for i, (t, a, a_prev, a_s) in enumerate(steps):
        x0 = denoise(x, t)
        eps = (x - sqrt(a) * x0) / sqrt(1 - a)
        x = sqrt(a_s) * x0 + sqrt(1 - a_s) * eps
        if eta > 0 and i < len(steps) - 1:
            x = sqrt(a_prev / a_s) * x + sqrt(1 - a_prev / a_s) * noise()
        yield x, x0
