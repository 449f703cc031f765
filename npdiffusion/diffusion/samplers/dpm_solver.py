"""Over σ, x's linear part solved exactly: the DPM-Solver++ family (Lu et al. 2022, arXiv:2211.01095).

    λ = −log σ      x(λ + h) = e^{−h} x(λ) + ∫ e^{λ' − λ − h} D dλ'      only D, which changes slowly, is approximated

With D constant over a step that is x_next = (σ_next/σ) x + (1 − σ_next/σ) D, exact for every step size.
Derived in docs/notes/08-samplers.md.

noise(σ, σ_next) → N(0, 1) like x: the increment of a Brownian motion between the two, over its standard deviation.
"""
from itertools import pairwise
from math import log, sqrt

from npdiffusion.diffusion.samplers.ancestral import ancestral_step
from npdiffusion.diffusion.samplers.between import Between


def dpmpp_2m(denoise, x, sigmas):
    """DPM-Solver++(2M): D extrapolated to mid-step.      Lu et al. 2022, arXiv:2211.01095

        x_next = (σ_next/σ) x − (e^{−h} − 1) D̄      D̄ = D + (h / 2h_prev)(D − D_prev)      algorithm 2

    λ = −log σ, h = λ_next − λ, so e^{−h} = σ_next/σ. The first step has no D_prev, the last no finite h: D̄ = D there.
    """
    history = _History()
    for sigma, sigma_next in pairwise(sigmas):
        x0 = denoise(x, sigma)
        mean = history.extrapolated(x0, sigma, sigma_next)
        x = sigma_next / sigma * x + (1 - sigma_next / sigma) * mean
        yield x, x0


def dpmpp_2m_sde(denoise, x, sigmas, noise):
    """The same for the stochastic flow: twice the pull towards D̄, and noise for what that takes away too much.

        x_next = e^{−2h} x + (1 − e^{−2h}) D̄ + σ_next √(1 − e^{−2h}) z      Lu et al., appendix A
    """
    history = _History()
    for sigma, sigma_next in pairwise(sigmas):
        x0 = denoise(x, sigma)
        mean = history.extrapolated(x0, sigma, sigma_next)
        kept = (sigma_next / sigma) ** 2                         # e^{−2h}
        x = kept * x + (1 - kept) * mean
        if sigma_next > 0:
            x = x + sigma_next * sqrt(1 - kept) * noise(sigma, sigma_next)
        yield x, x0


class _History:
    """D̄ = D + (h / 2h_prev)(D − D_prev) of each step, from what the step before left"""
    def __init__(self):
        self.denoised = self.h = None

    def extrapolated(self, denoised, sigma, sigma_next):
        if sigma_next == 0:
            return denoised
        h = log(sigma / sigma_next)
        mean = denoised if self.h is None else denoised + h / (2 * self.h) * (denoised - self.denoised)
        self.denoised, self.h = denoised, h
        return mean


def dpmpp_sde(denoise, x, sigmas, noise):
    """The midpoint rule for the stochastic flow: half-way in λ by an ancestral step, then all the way with D from there.

    Lu et al. 2022, arXiv:2211.01095 (SDE-DPM-Solver++), in k-diffusion's form with r = 1/2. Both steps follow one path,
    so that the noise of the whole way is that of the first half and that of the second.
    """
    def advance(x, x0, sigma, sigma_next, z):
        sigma_down, sigma_up = ancestral_step(sigma, sigma_next)
        kept = sigma_down / sigma
        return kept * x + (1 - kept) * x0 + sigma_up * z

    for sigma, sigma_next in pairwise(sigmas):
        x0 = denoise(x, sigma)
        if sigma_next == 0:
            x = x0
        else:
            middle = sqrt(sigma * sigma_next)
            z = noise(sigma, middle)
            x_mid = advance(x, x0, sigma, middle, z)
            x0 = denoise(x_mid, Between(middle))
            z = sqrt(sigma - middle) * z + sqrt(middle - sigma_next) * noise(middle, sigma_next)
            x = advance(x, x0, sigma, sigma_next, z / sqrt(sigma - sigma_next))
        yield x, x0
