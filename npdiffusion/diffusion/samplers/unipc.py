"""Over σ, a predictor and a corrector that share one call of the model: UniPC (Zhao et al. 2023, arXiv:2302.04867).

    x_next = e^{−h} x + (1 − e^{−h}) (D + Σ ρ_k (D_k − D) / r_k)      λ = −log σ, h = λ_next − λ, r_k = (λ_k − λ) / h

The predictor UniP knows D at earlier levels. When the model has been called at what it gives, that D at the far end
(r = 1) serves the corrector UniC, which takes the same step again: order 3 instead of 2. B(h) = e^h − 1, "bh2".
"""
from itertools import pairwise
from math import expm1, log


def unipc(denoise, x, sigmas):
    """UniPC-2, predicting x₀.      Zhao et al. 2023, arXiv:2302.04867, algorithms 1 and 2

    The last step is of order 1: its h is not finite.
    """
    step = None               # what the corrector takes again: (σ, σ_next, x, D, D_prev, r)
    h_prev = x0_prev = None
    for sigma, sigma_next in pairwise(sigmas):
        x0 = denoise(x, sigma)
        if step is not None:
            x = _corrected(*step, x0)
        r = None
        if sigma_next > 0:
            h = log(sigma / sigma_next)
            r = None if h_prev is None else -h_prev / h
            h_prev = h
        step = sigma, sigma_next, x, x0, x0_prev, r
        x = _predicted(*step)
        x0_prev = x0
        yield x, x0


def _predicted(sigma, sigma_next, x, x0, x0_prev, r):
    """UniP: ρ = 1/2, which makes it dpm++2m's step"""
    if r is not None:
        x0 = x0 + (x0_prev - x0) / (2 * r)
    return sigma_next / sigma * x + (1 - sigma_next / sigma) * x0


def _corrected(sigma, sigma_next, x, x0, x0_prev, r, x0_next):
    """UniC: with D at the far end; ρ solves Σ_k ρ_k r_k^{n−1} = n! φ_{n+1}(h) h / B(h), equation 8, n = 1 and 2"""
    change = x0_next - x0
    if r is None:
        bent = x0 + change / 2
    else:
        h = log(sigma / sigma_next)
        shrunk = expm1(-h)
        first = (shrunk / -h - 1) / shrunk
        second = 2 * ((shrunk / -h - 1) / -h - 1 / 2) / shrunk
        rho = (first - second) / (1 - r)
        bent = x0 + rho / r * (x0_prev - x0) + (first - rho) * change
    return sigma_next / sigma * x + (1 - sigma_next / sigma) * bent
