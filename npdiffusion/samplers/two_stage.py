"""Over σ, two calls of the model per step: the slope is looked up a second time, further on.

    dx/dσ = (x − D(x; σ)) / σ      the probability flow, equation 3 of Karras et al. 2022 (arXiv:2206.00364)
"""
from itertools import pairwise


def heun(denoise, x, sigmas):
    """The trapezoidal rule, its far end found by an Euler step.      Karras et al. 2022, arXiv:2206.00364, alg. 1"""
    for sigma, sigma_next in pairwise(sigmas):
        slope = (x - denoise(x, sigma)) / sigma
        x_next = x + (sigma_next - sigma) * slope
        if sigma_next > 0:                                   # the slope at σ = 0 is 0 / 0: the last step stays Euler's
            slope_next = (x_next - denoise(x_next, sigma_next)) / sigma_next
            x_next = x + (sigma_next - sigma) * (slope + slope_next) / 2
        x = x_next
        yield x
