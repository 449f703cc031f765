"""Over time steps, with slopes remembered: pndm, the sampler that Stable Diffusion v1 was published with.

    x = √ᾱ_t x₀ + √(1 − ᾱ_t) ε      a = ᾱ_t, a_prev = ᾱ_{t−1} of the papers; "t − 1" is the next time step that is visited
"""
from math import sqrt

ADAMS_BASHFORTH = (                                          # weights of the slopes seen so far, the newest first
    (1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def pndm(denoise, x, steps, velocity=False):
    """PLMS: a slope extrapolated from the last four goes through DDIM's step.      Liu et al. 2022, arXiv:2202.09778

        ε̄ = (55 ε_t − 59 ε_{t+1} + 37 ε_{t+2} − 9 ε_{t+3}) / 24      Adams-Bashforth
        x_{t−1} = √ᾱ_{t−1} x̂₀(ε̄) + √(1 − ᾱ_{t−1}) ε̄                 φ of the paper, equation 12 of DDIM's

    It starts, as Stable Diffusion's own code does, with an improved Euler step (two looks at the first interval), not
    with the paper's Runge-Kutta steps; then come orders 2 and 3.
    steps: (t, ᾱ_t, ᾱ_{t−1}); the second entry is that other look, its t the far end of the first interval. So n > 1
    entries are n calls and give n − 1 states.
    velocity: the model predicts v. diffusers then extrapolates v in place of ε, which gives other numbers.
    """
    def slope(x, t, a):                                      # ε, or v = √ᾱ ε − √(1 − ᾱ) x₀; and x̂₀
        x0 = denoise(x, t)
        eps = (x - sqrt(a) * x0) / sqrt(1 - a)
        return (sqrt(a) * eps - sqrt(1 - a) * x0 if velocity else eps), x0

    def phi(x, slope, a, a_prev):
        eps = sqrt(a) * slope + sqrt(1 - a) * x if velocity else slope
        x0 = (x - sqrt(1 - a) * eps) / sqrt(a)
        return sqrt(a_prev) * x0 + sqrt(1 - a_prev) * eps

    (t, a, a_prev), *steps = steps
    first, x0 = slope(x, t, a)
    x_far = phi(x, first, a, a_prev)
    if steps:
        (t, a, a_prev), *steps = steps
        second, x0 = slope(x_far, t, a_prev)
        x_far = phi(x, (first + second) / 2, a, a_prev)
    x = x_far
    yield x, x0

    recent = [first]                                         # slopes, the newest first
    for t, a, a_prev in steps:
        newest, x0 = slope(x, t, a)
        recent = [newest, *recent[:3]]
        x = phi(x, sum(w * s for w, s in zip(ADAMS_BASHFORTH[len(recent) - 1], recent)), a, a_prev)
        yield x, x0
