"""Multi-head attention with learnt projections: where tokens exchange information.

    q, k, v = x W_q, c W_k, c W_v          y = softmax(q kᵀ / √D) v for each head, then y W_out + residual

Vaswani et al. 2017, arXiv:1706.03762, section 3.2; the words c are x itself (self-attention) or the prompt's hidden
states (cross-attention); derived in docs/notes/09-attention.md. N images, T tokens, S words of width X, C channels = heads · D.
"""
from collections.abc import Sequence
from typing import Any

from npdiffusion import kernels
from npdiffusion.kernels.arrays import Array
from npdiffusion.models.conditioning import Conditioning, repeated
from npdiffusion.models.layers import Linear
from npdiffusion.models.tree import Module


class Attention(Module):
    """The projections, under the checkpoint's names, and their arithmetic; what attends to what is up to each kind.

    In the UNet q, k and v have no bias, in the VAE they have.
    """
    def __init__(self, channels: int, heads: int, context_channels: int | None = None, qkv_bias: bool = False) -> None:
        context_channels = context_channels or channels
        self.to_q = Linear(channels, channels, bias=qkv_bias)
        self.to_k = Linear(context_channels, channels, bias=qkv_bias)
        self.to_v = Linear(context_channels, channels, bias=qkv_bias)
        self.to_out: list[Any] = [Linear(channels, channels), None]          # placeholder for nn.Dropout
        self.heads = heads

    def keys_and_values(self, words: Array) -> tuple[Array, Array]:
        """(N, S, X) → k, v (N, S, C)"""
        return self.to_k(words), self.to_v(words)

    def attend(self, x: Array, k: Array, v: Array, residual: Array, beside: Sequence[tuple[Array, Array, float]] = ()) -> Array:
        """x, residual (n, T, C), k, v (N, S, C), N a multiple of n: see `repeated` → (N, T, C)

        beside: further [(k, v, scale)] that the same queries attend to by themselves; scale times the result is added
        """
        q = repeated(self.to_q(x), len(k))
        y = kernels.attention(q, k, v, self.heads, dtype=self.to_q.dtype)
        for other_k, other_v, scale in beside:
            y = y + scale * kernels.attention(q, other_k, other_v, self.heads, dtype=self.to_q.dtype)
        return self.to_out[0](y, repeated(residual, len(k)))


class SelfAttention(Attention):
    """x, residual (N, T, C) → (N, T, C), whatever they are conditioned on"""
    def __call__(self, x: Array, residual: Array, conditioning: Conditioning | None = None) -> Array:
        return self.attend(x, *self.keys_and_values(x), residual)


class CrossAttention(Attention):
    """x, residual (n, T, C), `Conditioning` of N prompts → (N, T, C)"""
    def __call__(self, x: Array, residual: Array, conditioning: Conditioning) -> Array:
        return self.attend(x, *conditioning.keys_and_values(self), residual, conditioning.beside(self))
