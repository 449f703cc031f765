"""Spatial transformer: where an image attends to itself and to the prompt.

Rombach et al. 2021, arXiv:2112.10752, section 3.3: the pixels of a feature map are the tokens; each block is
self-attention, cross-attention to the text encoder's hidden states, and a gated feed-forward layer, all with a
layer norm (docs/notes/11-normalisation.md) before and a residual around. T = H · W pixels, S words, C channels,
X context width.

Fewer images than prompts are shared by them, see conditioning.py: N is the number of images up to the first
cross-attention, and the number of prompts from there on.
"""
from typing import Any

from npdiffusion import kernels
from npdiffusion.kernels.arrays import Array
from npdiffusion.models.attention import CrossAttention, SelfAttention
from npdiffusion.models.conditioning import Conditioning, repeated
from npdiffusion.models.layers import Conv2d, GroupNorm, LayerNorm, Linear
from npdiffusion.models.tree import Module


class GEGLU(Module):
    """value · GELU(gate), (value, gate) = x Wᵀ + b      (..., C) → (..., inner)          Shazeer 2020, arXiv:2002.05202"""
    def __init__(self, channels: int, inner: int) -> None:
        self.proj = Linear(channels, 2 * inner)

    def __call__(self, x: Array) -> Array:
        return kernels.linear_geglu(x, self.proj.weight, self.proj.bias)


class FeedForward(Module):
    """GEGLU to four times the width and back      (N, T, C) → (N, T, C)"""
    def __init__(self, channels: int) -> None:
        self.net: list[Any] = [GEGLU(channels, 4 * channels), None,                  # placeholder for nn.Dropout
                               Linear(4 * channels, channels)]

    def __call__(self, x: Array, residual: Array) -> Array:
        return self.net[2](self.net[0](x), residual)


class BasicTransformerBlock(Module):
    """x (n, T, C), `Conditioning` of N prompts → (N, T, C)      crosses: both attentions read the prompt"""
    def __init__(self, channels: int, heads: int, context_channels: int, crosses: bool = False) -> None:
        self.norm1 = LayerNorm(channels)
        self.attn1 = CrossAttention(channels, heads, context_channels) if crosses else SelfAttention(channels, heads)
        self.norm2 = LayerNorm(channels)
        self.attn2 = CrossAttention(channels, heads, context_channels)
        self.norm3 = LayerNorm(channels)
        self.ff = FeedForward(channels)

    def __call__(self, x: Array, conditioning: Conditioning) -> Array:
        x = self.attn1(self.norm1(x), residual=x, conditioning=conditioning)
        x = self.attn2(self.norm2(x), residual=x, conditioning=conditioning)
        return self.ff(self.norm3(x), residual=x)


class Transformer2DModel(Module):
    """(n, H, W, C), `Conditioning` of N prompts → (N, H, W, C)      eps of the norm is 1e-6 here, whatever `norm_eps` says

    depth: how many blocks      linear: projections in and out are called linear layers, not 1×1 convolutions
    """
    def __init__(self, channels: int, heads: int, context_channels: int, groups: int, depth: int = 1, linear: bool = False,
                 crosses: bool = False) -> None:
        self.norm = GroupNorm(channels, groups, eps=1e-6)
        self.proj_in = Linear(channels, channels) if linear else Conv2d(channels, channels, kernel=1)
        self.transformer_blocks = [BasicTransformerBlock(channels, heads, context_channels, crosses) for _ in range(depth)]
        self.proj_out = Linear(channels, channels) if linear else Conv2d(channels, channels, kernel=1)

    def __call__(self, x: Array, conditioning: Conditioning) -> Array:
        n, height, width, channels = x.shape
        tokens = self.proj_in(self.norm(x)).reshape(n, height * width, channels)
        for block in self.transformer_blocks:
            tokens = block(tokens, conditioning)
        return self.proj_out(tokens.reshape(-1, height, width, channels), residual=repeated(x, len(tokens)))
