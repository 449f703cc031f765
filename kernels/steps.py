"""What optimisers do to a parameter, in plain NumPy. Each has a compiled twin in fast_steps.py.

θ the parameter, g its gradient, and what is remembered of it: arrays alike. θ and memories are changed in place.
"""
import math

import numpy as np


def adam(value, gradient, mean, square, step, rate, betas=(0.9, 0.999), eps=1e-8, decay=0.0, apart=False):
    """Adam: a step of about η for each number, whatever its gradient's size      t = step = 1, 2, …; η = rate; λ = decay

        m ← β₁ m + (1 − β₁) g        m̂ = m / (1 − β₁ᵗ)        both averages begin at 0; m̂ and v̂ take that out
        v ← β₂ v + (1 − β₂) g²       v̂ = v / (1 − β₂ᵗ)
        θ ← θ − η m̂ / (√v̂ + ε)                                decay: g ← g + λ θ first; `apart`: θ ← (1 − η λ) θ instead
    """
    one, two = betas
    if apart:
        value *= 1 - rate * decay
    elif decay:
        gradient = gradient + decay * value
    mean += (1 - one) * (gradient - mean)
    square *= two
    square += (1 - two) * (gradient * gradient)
    scale = np.sqrt(square)
    scale *= 1 / math.sqrt(1 - two ** step)
    scale += eps
    value -= rate / (1 - one ** step) * mean / scale
