"""From what the model predicts to the denoiser D, the one thing that a sampler sees.

A noisy state is x = α x₀ + σ ε, with ε ~ N(0, 1). Two scales are in use, and (α, σ) tells them apart:

    variance preserving   α = √ᾱ, σ = √(1 − ᾱ)     x_t of DDPM, DDIM and PNDM: what the model was trained on
    variance exploding    α = 1                    x of Karras et al. 2022 (arXiv:2206.00364): x₀ under noise of size σ

One D(x) = E[x₀ | x] serves both, since x / √(α² + σ²) has the scale of the training. Three layers, all plain callables:

    model(context): predict(x, t)  →  guided: predict(x, t)  →  Denoiser: denoise(x, level) = x̂₀

N images, H × W latent pixels, C channels (last); float32 in, float32 out.
"""
import math

import numpy as np


def guided(model, context, negative, scale, rescale=0.0):
    """Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598):  ε̂ = ε(∅) + s (ε(c) − ε(∅)).

    model    from context (M, S, X) to predict(x (N, H, W, C), t) → (M, H, W, C), where M is N or 2N and image i goes
             with contexts i and N + i; all float32, t a float
    context  (N, S, X) of the prompts; negative the same of the negative prompts, unused (and may be None) at scale 1
    rescale  φ of Lin et al. 2023 (arXiv:2305.08891), equations 15 and 16: how far ε̂ is brought back to the standard
             deviation of ε(c), which a large s raises; 0 is not at all
    Returns predict(x (N, H, W, C), t) → (N, H, W, C). Both halves go through the model as one batch, the unconditional
    half first, and share x, so that the model may share work; at scale 1 that half has no weight and isn't computed.
    Nor is it below 1: as in diffusers, that is no guidance either.
    """
    if scale <= 1:
        return model(context)
    both = model(np.concatenate([negative, context]))
    scale, rescale = float(scale), float(rescale)            # NumPy scalars would turn float32 into float64

    def predict(x, t):
        unconditional, conditional = np.split(both(x, t), 2)
        prediction = unconditional + scale * (conditional - unconditional)
        return rescaled(prediction, conditional, rescale) if rescale else prediction

    return predict


def rescaled(prediction, conditional, share):
    """φ σ_c/σ ε̂ + (1 − φ) ε̂, σ the standard deviation of each image's prediction      (N, H, W, C) → (N, H, W, C)"""
    conditional, guided = (x.std(axis=(1, 2, 3), keepdims=True) for x in (conditional, prediction))
    return prediction * (1 + share * (conditional / guided - 1))


class Denoiser:
    """x̂₀ from a model that predicts ε, v or x₀ itself; nothing else in the library knows which of them it is.

        epsilon        ε                      x̂₀ = (x − σ ε) / α
        v_prediction   v = α ε − σ x₀         x̂₀ = α x − σ v where α² + σ² = 1 (Salimans & Ho 2022, arXiv:2202.00512)
        sample         x₀                     x̂₀ = x₀

    predict  (x (N, H, W, C) float32 of the training's scale, t) → the same shape
    plan     gives `prediction_type`, and `levels`: from the number by which a sampler names a noise level (time step or
             σ) to that level's (t, α, σ)
    denoised the latest x̂₀, for previews; None before the first call
    """

    def __init__(self, predict, plan):
        self.predict, self.levels, self.prediction_type = predict, plan.levels, plan.prediction_type
        self.denoised = None

    def __call__(self, x, level):                            # (N, H, W, C) → (N, H, W, C)
        self.denoised = self._denoise(x, level)
        return self.denoised

    def _denoise(self, x, level):
        t, alpha, sigma = self.levels[level]
        size = math.hypot(alpha, sigma)                      # 1 for variance preserving states
        output = self.predict(x / size, t)
        if self.prediction_type == "epsilon":
            return (x - sigma * output) / alpha
        if self.prediction_type == "v_prediction":
            return (alpha / size * x - sigma * output) / size
        return output
