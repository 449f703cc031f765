"""From what the model predicts to the denoiser D, the one thing that a sampler sees.

A noisy state is x = α x₀ + σ ε, with ε ~ N(0, 1). Two scales are in use, and (α, σ) distinguishes them:

    variance preserving   α = √ᾱ, σ = √(1 − ᾱ)     x_t of DDPM, DDIM and PNDM: what the model was trained on
    variance exploding    α = 1                    x of Karras et al. 2022 (arXiv:2206.00364): x₀ under noise of size σ

One D(x) = E[x₀ | x] serves both, since x / √(α² + σ²) has the scale of the training.

Why these are the same thing, and the score too: docs/notes/07-score.md

    sampler  →  Denoiser(x, level) = x̂₀  →  Prediction(x, t, call) = ε̂, guidance.py  →  UNet

N images, H × W latent pixels, C channels (last); float32 in, float32 out.
"""
import math
from collections.abc import Callable
from typing import Any

import numpy as np


class Denoiser:
    """x̂₀ from a model that predicts ε, v or x₀ itself; nothing else in the library knows which of them it is.

        epsilon        ε                      x̂₀ = (x − σ ε) / α
        v_prediction   v = α ε − σ x₀         x̂₀ = α x − σ v where α² + σ² = 1 (Salimans & Ho 2022, arXiv:2202.00512)
        sample         x₀                     x̂₀ = x₀

    predict  (x (N, H, W, C) float32 of the training's scale, t, number of the call, from 0) → the same shape
    plan     gives `prediction_type`, and `levels`: from the number by which a sampler names a noise level (time step or
             σ) to that level's (t, α, σ)
    known    painting.inpainting.Known, which puts the parts of a picture that are kept back in their place; or None
    calls    how often a model has been called, an earlier one in this run too: prompts that change with the steps count in it
    """
    def __init__(self, predict: Callable[[np.ndarray, float, int], np.ndarray], plan: Any, known: Any = None,
                 calls: int = 0) -> None:
        self.predict, self.levels, self.prediction_type, self.known = predict, plan.levels, plan.prediction_type, known
        self.calls = calls

    def __call__(self, x: np.ndarray, level: Any) -> np.ndarray:  # (N, H, W, C) → (N, H, W, C)
        t, alpha, sigma = self.levels[level]
        if self.known and level != next(iter(self.levels)):  # the first state is right already: noise alone at strength 1
            x = self.known.under_noise(x, alpha, sigma)
        size = math.hypot(alpha, sigma)                      # 1 for variance preserving states
        output = self.predict(x / size, t, self.calls)
        self.calls += 1
        if self.prediction_type == "epsilon":
            x0 = (x - sigma * output) / alpha
        elif self.prediction_type == "v_prediction":
            x0 = (alpha / size * x - sigma * output) / size
        else:
            x0 = output
        return self.known.clean(x0) if self.known else x0
