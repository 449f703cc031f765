"""What the UNet is conditioned on, and what is computed once although several steps or several images need it.

    from the prompt alone      keys and values of each cross-attention       once a picture instead of once a step
    from latents and t alone   all that precedes the first cross-attention   once a step instead of for each prompt

A guided step asks the UNet about the same N latents under two prompts. It may therefore be given N latents and 2N
prompts, where latents i go with prompts i and N + i: the batch stays N up to the first cross-attention, and what was
kept before it (skip connections, residuals) is `repeated` when it meets the batch of 2N. No result changes.

In XL the time embedding differs between prompts, and so they have no more in common than the first convolution.

N prompts, S words of width X, C channels, P numbers of an embedded guidance scale.
"""
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from npdiffusion.kernels.arrays import Array


class Conditioning:
    """What a prediction depends on besides the latents and the time step.

    states         hidden states of the prompts, (N, S, X), float32
    timestep_cond  for models with `time_cond_proj_dim`: the embedded guidance scale, (N, P) or (1, P), see
                   `guidance_embedding`; None for all others
    pooled, sizes  in XL: a vector for each prompt as a whole, (N, X₂), and sizes that the picture is said to have, in pixels
                   (N, 6), see text/contexts.py; None for all others
    pictures       [ip_adapter.ImagePrompt], of N prompts each: pictures that are attended to beside the words

    Keys and values are computed when first asked for and kept: a UNet whose weights have changed needs a new object.
    """
    def __init__(self, states: Array, timestep_cond: Array | None = None, pooled: Array | None = None,
                 sizes: Array | None = None, pictures: Sequence[Any] = ()) -> None:
        self.states, self.timestep_cond, self.pooled, self.sizes = states, timestep_cond, pooled, sizes
        self.pictures = pictures
        self._keys_and_values: dict[Any, tuple[Array, Array]] = {}
        self._beside: dict[Any, list[tuple[Array, Array, float]]] = {}

    def __len__(self):
        return len(self.states)

    def with_states(self, states: Array) -> "Conditioning":
        """The same for other hidden states; nothing is remembered"""
        return Conditioning(states, self.timestep_cond, self.pooled, self.sizes, self.pictures)

    def keys_and_values(self, attention: Any) -> tuple[Array, Array]:
        """k, v (N, S, C), which an `Attention` makes of the hidden states"""
        if attention not in self._keys_and_values:
            self._keys_and_values[attention] = attention.keys_and_values(self.states)
        return self._keys_and_values[attention]

    def beside(self, attention: Any) -> list[tuple[Array, Array, float]]:
        """[(k, v, scale)] that an `Attention` makes of pictures"""
        if attention not in self._beside:
            self._beside[attention] = [(*each.keys_and_values(attention), each.scale) for each in self.pictures
                                       if each.scale and attention in each.layers]
        return self._beside[attention]


def repeated(x: Array, batch: int) -> Array:
    """Row i of x for each of i, n + i, 2n + i, ... of a batch      (n, ...) → (batch, ...), x itself if batch is n"""
    return x if len(x) == batch else np.concatenate([x] * (batch // len(x)))


def guidance_embedding(scale: float, size: int) -> Array:
    """Sines and cosines of w = scale − 1, by which a distilled UNet knows the guidance scale      → (1, size), float32

        sin(1000 w f_i), cos(1000 w f_i)      f_i = 10000^(−i/(n−1)), n = ⌊size/2⌋      Luo et al. 2023, arXiv:2310.04378

    An odd size is filled up by a zero. Arithmetic is float32: angles are thousands of radians, and the model was trained
    with them rounded so.
    """
    half = size // 2
    step = np.float32(math.log(10000.0)) / np.float32(max(half - 1, 1))
    angles = np.float32(1000.0 * (scale - 1.0)) * np.exp(-step * np.arange(half, dtype=np.float32))
    return np.concatenate([np.sin(angles), np.cos(angles), np.zeros(size % 2, np.float32)])[None]
