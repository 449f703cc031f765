"""IP-Adapter: a picture as a prompt (Ye et al. 2023, arXiv:2308.06721).

    y = attention(q, k_text, v_text) + scale · attention(q, k_ip, v_ip),  k_ip, v_ip = c_ip W_k', c_ip W_v'      equation 5

Each cross-attention of the UNet gets two matrices of its own, W_k' and W_v'; its queries stay. The picture's tokens c_ip come
of CLIP's image encoder (clip_vision.py), by one of three ways:

    ImageProjection       of the image embedding, T (4) tokens by one matrix
    Resampler             "Plus": of the encoder's penultimate states, T (16) learnt queries attend to them (Perceiver, Jaegle
                          et al. 2021, arXiv:2103.03206)
    FullImageProjection   "full face": of these states, each by itself

N pictures, S states of width D, P numbers of an image embedding, T tokens of width X, that of the prompt's states.
"""
from collections.abc import Sequence
from typing import Any

import numpy as np

from npdiffusion import kernels
from npdiffusion.kernels.arrays import Array
from npdiffusion.models.attention import CrossAttention
from npdiffusion.models.clip_vision import CLIPVisionModelWithProjection
from npdiffusion.models.layers import LayerNorm, Linear
from npdiffusion.models.parameters import modules
from npdiffusion.models.tree import Module
from npdiffusion.models.unet import UNet2DConditionModel

HEAD_WIDTH = 64                       # of the resampler


class ImageProjection(Module):
    """Image embeddings (N, P) → (N, T, X)"""
    of_states = False

    def __init__(self, embedding: int, tokens: int, width: int) -> None:
        self.proj = Linear(embedding, tokens * width)
        self.norm = LayerNorm(width)

    def __call__(self, embeddings: Array) -> Array:
        tokens = self.proj(embeddings)
        return self.norm(tokens.reshape(len(tokens), -1, len(self.norm.weight)))


class FullImageProjection(Module):
    """States (N, S, D) → (N, S, X)"""
    of_states = True

    def __init__(self, inner: int, width: int) -> None:
        self.proj: list[Any] = [Linear(inner, inner), None, Linear(inner, width), LayerNorm(width)]       # placeholder for GELU

    def __call__(self, states: Array) -> Array:
        first, _, second, norm = self.proj
        return norm(second(kernels.gelu(first(states))))


class PerceiverAttention(Module):
    """Queries (N, T, C) attend to states (N, S, C) and to themselves      → (N, T, C)"""
    def __init__(self, channels: int, inner: int) -> None:
        self.norm1, self.norm2 = LayerNorm(channels), LayerNorm(channels)
        self.to_q = Linear(channels, inner, bias=False)
        self.to_kv = Linear(channels, 2 * inner, bias=False)
        self.to_out = Linear(inner, channels, bias=False)
        self.heads = inner // HEAD_WIDTH

    def __call__(self, states: Array, queries: Array) -> Array:
        normed = self.norm2(queries)
        k, v = np.split(self.to_kv(np.concatenate([self.norm1(states), normed], axis=1)), 2, axis=-1)
        y = kernels.attention(self.to_q(normed), np.ascontiguousarray(k), np.ascontiguousarray(v), self.heads)
        return self.to_out(y, queries)


class Resampler(Module):
    """States (N, S, D) → (N, T, X)"""
    of_states = True

    def __init__(self, states: int, channels: int, inner: int, tokens: int, layers: int, width: int) -> None:
        self.latents = np.zeros((1, tokens, channels), np.float32)
        self.proj_in = Linear(states, channels)
        self.layers: list[list[Any]] = [[PerceiverAttention(channels, inner), [  # a norm, two matrices, and GELU between them
            LayerNorm(channels), Linear(channels, 4 * channels, bias=False), None,
            Linear(4 * channels, channels, bias=False)]] for _ in range(layers)]
        self.proj_out = Linear(channels, width)
        self.norm_out = LayerNorm(width)

    def __call__(self, states: Array) -> Array:
        states = self.proj_in(states)
        queries = np.repeat(self.latents, len(states), axis=0)
        for attention, (norm, wide, _, narrow) in self.layers:
            queries = attention(states, queries)
            queries = narrow(kernels.gelu(wide(norm(queries))), queries)
        return self.norm_out(self.proj_out(queries))


Projection = ImageProjection | FullImageProjection | Resampler


class KeysAndValues(Module):
    """W_k' and W_v' of one cross-attention"""
    def __init__(self, width: int, channels: int) -> None:
        self.to_k_ip, self.to_v_ip = Linear(width, channels, bias=False), Linear(width, channels, bias=False)


class IPAdapter(Module):
    """A picture → tokens, and what each cross-attention of a UNet makes of them

    image_proj: one of the three      channels: of the UNet's cross-attentions, in their order: the way down, up, the middle
    Attentions are counted through, self-attention first in each block, so that W_k' and W_v' have odd numbers.
    """
    def __init__(self, image_proj: Projection, width: int, channels: Sequence[int]) -> None:
        self.image_proj = image_proj
        self.ip_adapter: list[Any] = []
        for each in channels:
            self.ip_adapter += [None, KeysAndValues(width, each)]

    def layers(self, unet: UNet2DConditionModel) -> dict[CrossAttention, KeysAndValues]:
        """{cross-attention of the UNet: KeysAndValues}"""
        return dict(zip(cross_attentions(unet), self.ip_adapter[1::2], strict=True))

    def tokens(self, encoder: CLIPVisionModelWithProjection, pixels: Array) -> list[Array]:
        """Normalised pixels (1, S, S, 3) → tokens (1, T, X) of the picture, and those for the negative prompt"""
        if self.image_proj.of_states:
            states = [encoder.hidden_states(each)[-2] for each in (pixels, np.zeros_like(pixels))]
        else:
            embedding = encoder(pixels)
            states = [embedding, np.zeros_like(embedding)]
        return [self.image_proj(each) for each in states]


class ImagePrompt:
    """A picture as the UNet attends to it. layers: `IPAdapter.layers`; tokens (M, T, X), of M prompts; scale: see above"""
    def __init__(self, layers: dict[CrossAttention, KeysAndValues], tokens: Array, scale: float = 1.0) -> None:
        self.layers, self.tokens, self.scale = layers, tokens, scale

    def keys_and_values(self, attention: CrossAttention) -> tuple[Array, Array]:
        """k, v (M, T, C) for one of the cross-attentions"""
        layer = self.layers[attention]
        return layer.to_k_ip(self.tokens), layer.to_v_ip(self.tokens)


def cross_attentions(unet: UNet2DConditionModel) -> list[CrossAttention]:
    """Those that read the prompt beside a self-attention, as diffusers counts: of the way down, the way up, the middle"""
    parts = [unet.down_blocks, unet.up_blocks, [unet.mid_block] if unet.mid_block else []]
    return [module for part in parts for path, module in modules(part)
            if path.endswith("attn2") and isinstance(module, CrossAttention)]
