"""Spatial transformer: where an image attends to itself and to the prompt.

Rombach et al. 2021, arXiv:2112.10752, section 3.3: the pixels of a feature map are the tokens; each block is
self-attention, cross-attention to the text encoder's hidden states, and a gated feed-forward layer, all with a
layer norm before and a residual around. T = H · W pixels, S words, C channels, X context width.

A context is an array or a `Context`, which remembers keys and values. Fewer images than contexts are shared by them,
see conditioning.py: N is the number of images up to the first cross-attention, and the number of contexts from there on.
"""
from npdiffusion import kernels
from npdiffusion.models.conditioning import Context, repeated
from npdiffusion.models.layers import Conv2d, GroupNorm, LayerNorm, Linear

_NO_PARAMETERS = None      # the checkpoint counts a dropout layer at this index


class Attention:
    """Multi-head attention with a projection at its end      (N, T, C), context (N, S, X) → (N, T, C)

    Vaswani et al. 2017, arXiv:1706.03762, section 3.2. In the UNet q, k and v have no bias, in the VAE they have.
    """
    def __init__(self, channels, heads, context_channels=None, qkv_bias=False):
        context_channels = context_channels or channels
        self.to_q = Linear(channels, channels, bias=qkv_bias)
        self.to_k = Linear(context_channels, channels, bias=qkv_bias)
        self.to_v = Linear(context_channels, channels, bias=qkv_bias)
        self.to_out = [Linear(channels, channels), _NO_PARAMETERS]
        self.heads = heads

    def __call__(self, x, residual, context=None):
        """x attends to the context, or to itself without one; residual: like x"""
        if isinstance(context, Context):
            k, v = context.keys_and_values(self)
        else:
            k, v = self.keys_and_values(x if context is None else context)
        y = kernels.attention(repeated(self.to_q(x), len(k)), k, v, self.heads, dtype=self.to_q.dtype)
        return self.to_out[0](y, repeated(residual, len(k)))

    def keys_and_values(self, context):
        """(N, S, X) → k, v (N, S, C)"""
        return self.to_k(context), self.to_v(context)


class GEGLU:
    """value · GELU(gate), (value, gate) = x Wᵀ + b      (..., C) → (..., inner)          Shazeer 2020, arXiv:2002.05202"""
    def __init__(self, channels, inner):
        self.proj = Linear(channels, 2 * inner)

    def __call__(self, x):
        return kernels.linear_geglu(x, self.proj.weight, self.proj.bias)


class FeedForward:
    """GEGLU to four times the width and back      (N, T, C) → (N, T, C)"""
    def __init__(self, channels):
        self.net = [GEGLU(channels, 4 * channels), _NO_PARAMETERS, Linear(4 * channels, channels)]

    def __call__(self, x, residual):
        return self.net[2](self.net[0](x), residual)


class BasicTransformerBlock:
    """(N, T, C), context (N, S, X) → (N, T, C)"""
    def __init__(self, channels, heads, context_channels):
        self.norm1 = LayerNorm(channels)
        self.attn1 = Attention(channels, heads)
        self.norm2 = LayerNorm(channels)
        self.attn2 = Attention(channels, heads, context_channels)
        self.norm3 = LayerNorm(channels)
        self.ff = FeedForward(channels)

    def __call__(self, x, context):
        x = self.attn1(self.norm1(x), residual=x)
        x = self.attn2(self.norm2(x), residual=x, context=context)
        return self.ff(self.norm3(x), residual=x)


class Transformer2DModel:
    """(N, H, W, C), context (N, S, X) → (N, H, W, C)      eps of the norm is 1e-6 here, whatever `norm_eps` says."""
    def __init__(self, channels, heads, context_channels, groups):
        self.norm = GroupNorm(channels, groups, eps=1e-6)
        self.proj_in = Conv2d(channels, channels, kernel=1)
        self.transformer_blocks = [BasicTransformerBlock(channels, heads, context_channels)]
        self.proj_out = Conv2d(channels, channels, kernel=1)

    def __call__(self, x, context):
        n, height, width, channels = x.shape
        tokens = self.proj_in(self.norm(x)).reshape(n, height * width, channels)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return self.proj_out(tokens.reshape(-1, height, width, channels), residual=repeated(x, len(tokens)))
