"""Over σ, with the slopes of earlier steps: Adams-Bashforth methods for steps of unequal length.

    x_next = x + ∫ p(σ) dσ from σ to σ_next,      p the polynomial through the slopes dx/dσ = (x − D) / σ seen so far

The two differ in the variable of the polynomial: lms takes σ, deis log σ, in which the slope ε̂ changes more evenly.
"""
from itertools import pairwise
from math import hypot, log


def lms(denoise, x, sigmas):
    """Linear multistep, a cubic through four slopes; the first steps have fewer.      k-diffusion; Adams 1883"""
    seen, slopes = [], []                                        # the newest first
    for sigma, sigma_next in pairwise(sigmas):
        seen = [sigma, *seen[:3]]
        x0 = denoise(x, sigma)
        slopes = [(x - x0) / sigma, *slopes[:3]]
        weights = (_integral(seen, j, sigma_next) for j in range(len(seen)))
        x = x + sum(weight * slope for weight, slope in zip(weights, slopes))
        yield x, x0


def _integral(nodes, j, end):
    """∫ from nodes[0] to end of the polynomial that is 1 at nodes[j], 0 at the others; Simpson's rule is exact to cubics"""
    def lagrange(sigma):
        value = 1.0
        for k, node in enumerate(nodes):
            if k != j:
                value *= (sigma - node) / (nodes[j] - node)
        return value

    start = nodes[0]
    return (end - start) / 6 * (lagrange(start) + 4 * lagrange((start + end) / 2) + lagrange(end))


def deis(denoise, x, sigmas, lower_order_final):
    """DEIS, a line in log σ through two slopes.      Zhang & Chen 2022, arXiv:2204.13902, logρAB1 of section 3.3

    lower_order_final: the last step goes without the slope before it, which is safer when there are few steps.
    The last σ isn't 0, where log σ has no value, but the training's lowest: x stays under so little noise, and is given
    on the scale of the training, x / √(1 + σ²).
    """
    sigma_prev = slope_prev = None
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        last = i == len(sigmas) - 2
        x0 = denoise(x, sigma)
        slope = (x - x0) / sigma
        if slope_prev is None or (last and lower_order_final):
            x = x + (sigma_next - sigma) * slope
        else:
            weight = _integral_in_log(sigma_prev, sigma, sigma_next)
            x = x + weight * slope + (sigma_next - sigma - weight) * slope_prev
        sigma_prev, slope_prev = sigma, slope
        yield (x / hypot(1, sigma_next) if last else x), x0


def _integral_in_log(sigma_prev, sigma, end):
    """∫ from σ to end of the line in log σ that is 1 at σ and 0 at sigma_prev"""
    def antiderivative(at):
        return at * (log(at / sigma_prev) - 1) / log(sigma / sigma_prev)
    return antiderivative(end) - antiderivative(sigma)
