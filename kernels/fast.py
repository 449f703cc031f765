"""The fast twins of every operation, by the names of `kernels.OPERATIONS`. Importing this module imports numba.

Products, normalisation, attention and activations are compiled. The rest moves memory or is tiny, and there NumPy is as
fast: those names are the reference itself. Arrays must be float32 (or float16, which is widened); TypeError otherwise.
"""
from . import environment  # noqa: F401 (first: with some of numba's variables even its import fails)
from .activations import gelu, quick_gelu, relu, silu
from .codegen.compiling import is_cached, warm_up
from .normalization import group_norm, group_norm_silu, layer_norm
from .products.convolution import conv2d, upsample_conv2d
from .products.flash_attention import attention
from .products.matmul import linear, linear_geglu
from .products.packing import Packed, pack_conv2d, pack_linear
from .reference import embedding, softmax, timestep_embedding, upsample_nearest

__all__ = ["Packed", "attention", "conv2d", "embedding", "gelu", "group_norm", "group_norm_silu", "is_cached",
           "layer_norm", "linear", "linear_geglu", "pack_conv2d", "pack_linear", "quick_gelu", "relu", "silu", "softmax",
           "timestep_embedding", "upsample_conv2d", "upsample_nearest", "warm_up"]
