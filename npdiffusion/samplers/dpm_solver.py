"""Over σ, x's linear part solved exactly: the DPM-Solver++ family (Lu et al. 2022, arXiv:2211.01095).

    λ = −log σ      x(λ + h) = e^{−h} x(λ) + ∫ e^{λ' − λ − h} D dλ'      only D, which changes slowly, is approximated
"""
import math
from itertools import pairwise


def dpmpp_2m(denoise, x, sigmas):
    """DPM-Solver++(2M): x's linear part exactly, D extrapolated to mid-step.      Lu et al. 2022, arXiv:2211.01095

        x_next = (σ_next/σ) x − (e^{−h} − 1) D̄      D̄ = D + (h / 2h_prev)(D − D_prev)      algorithm 2

    λ = −log σ, h = λ_next − λ, so e^{−h} = σ_next/σ. The first step has no D_prev, the last no finite h: D̄ = D there.
    """
    denoised_prev = h_prev = None
    for sigma, sigma_next in pairwise(sigmas):
        denoised = extrapolated = denoise(x, sigma)
        if sigma_next > 0:
            h = math.log(sigma / sigma_next)
            if h_prev is not None:
                extrapolated = denoised + h / (2 * h_prev) * (denoised - denoised_prev)
            denoised_prev, h_prev = denoised, h
        x = sigma_next / sigma * x + (1 - sigma_next / sigma) * extrapolated
        yield x
