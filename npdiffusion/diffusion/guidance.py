"""Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598): how closely a picture follows its prompt.

    ε̂ = ε(∅) + s (ε(c) − ε(∅))      c the prompt, ∅ the negative prompt or an empty one, s the guidance scale

It acts on whatever the model predicts: ε, v or x₀. Why it works, and what it costs: docs/notes/13-guidance.md

N images, H × W latent pixels, C channels (last); float32.
"""
from collections import deque

import numpy as np

from npdiffusion.models import diagnosis

MOST_CALLS = 2                # of the model in one step of a sampler


def guide(unconditional: np.ndarray, conditional: np.ndarray, scale: float, rescale: float = 0.0) -> np.ndarray:
    """ε(∅), ε(c) (N, H, W, C) → ε̂, the same shape

    rescale: φ of Lin et al. 2023 (arXiv:2305.08891), equations 15 and 16, from 0 to 1: how far ε̂ is brought back to the
    standard deviation of ε(c), which a large s raises.
    """
    scale, rescale = float(scale), float(rescale)            # NumPy scalars would turn float32 into float64
    guided = unconditional + scale * (conditional - unconditional)
    return rescaled(guided, conditional, rescale) if rescale else guided


def rescaled(guided: np.ndarray, conditional: np.ndarray, share: float) -> np.ndarray:
    """φ σ_c/σ ε̂ + (1 − φ) ε̂, σ the standard deviation of each image's prediction      (N, H, W, C) → (N, H, W, C)"""
    wanted, found = (x.std(axis=(1, 2, 3), keepdims=True) for x in (conditional, guided))
    return guided * (1 + share * (wanted / found - 1))


class Prediction:
    """What the UNet predicts at one call of a sampler, guided: predict(x (N, H, W, C), t, call) → (N, H, W, C)

    unet      called as unet(latents, t, conditioning) → (M, H, W, C); M is N, or 2N where both halves of guidance go through
              it as one batch, the unconditional half first, and share the latents
    contexts  gives the conditioning of a call, counted from 0, by `contexts.conditioning(call)`; see text/contexts.py
    scale     s; at 1 or less there is no guidance, as in diffusers, and `contexts` holds the prompt alone
    rescale   φ, see `guide`
    channels  further channels that an inpainting model reads beside the latents (N or 1, H, W, K), or None
    control   models.controlnet.Controls, or None
    features  a models.t2i_adapter.Features, or None
    """
    def __init__(self, unet, contexts, scale=1.0, rescale=0.0, channels=None, control=None, features=None):
        self.unet, self.contexts, self.scale, self.rescale, self.channels = unet, contexts, scale, rescale, channels
        self.control, self.features = control, features
        self.recent = deque(maxlen=MOST_CALLS)               # the latest calls, for `check`

    def __call__(self, x, t, call):
        self.recent.append((x, t, call))
        output = self.unet(*self.asked(x, t, call))
        return guide(*np.split(output, 2), self.scale, self.rescale) if self.scale > 1 else output

    def asked(self, x, t, call):
        """The arguments of the UNet at a call"""
        latents = x
        if self.channels is not None:
            x = np.concatenate([x, np.broadcast_to(self.channels, (*x.shape[:3], self.channels.shape[-1]))], axis=-1)
        conditioning = self.contexts.conditioning(call)
        control = self.control and self.control.residuals(latents, t, conditioning, call, self.scale > 1)
        found = (x, t, conditioning, control) if control or self.features else (x, t, conditioning)
        return (*found, self.features.at(call)) if self.features else found

    def check(self, state):
        """UserError that names the layer where a NaN or an infinity arose, if there is one in a sampler's state."""
        if not np.isfinite(state).all():
            diagnosis.explain(self.unet, "unet", [self.asked(*each) for each in self.recent])
