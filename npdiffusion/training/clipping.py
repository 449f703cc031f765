"""What happens to gradients before the step: the mean of several batches, and a bound on their length.

    accumulated      (g₁ + … + gₙ) / n, the gradient of a batch n times as large as memory holds at once
    clipped          g · min(1, c / ‖g‖), ‖g‖ over all parameters together       Pascanu et al. 2012, arXiv:1211.5063

Gradients are {name: array}.
"""
import math

import numpy as np


def accumulated(batches):
    """The mean of the gradients that an iterable yields, each {name: array} of the same names; ValueError without any"""
    total, count = {}, 0
    for gradients in batches:
        count += 1
        for name, gradient in gradients.items():
            total[name] = total[name] + gradient if name in total else gradient
    if not count:
        raise ValueError("there are no gradients")
    return total if count == 1 else {name: gradient * (1 / count) for name, gradient in total.items()}


def norm(gradients):
    """‖g‖₂ over all numbers, a Python float"""
    return math.sqrt(sum(float(np.vdot(gradient, gradient)) for gradient in gradients.values()))


def clipped(gradients, largest):
    """Gradients that are together at most `largest` long, of the same direction; 1e-6 as in torch's clip_grad_norm_"""
    length = norm(gradients)
    scale = largest / (length + 1e-6)
    return gradients if not scale < 1 else {name: gradient * scale for name, gradient in gradients.items()}
