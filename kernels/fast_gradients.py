"""The compiled twins of gradients.py, by the same names. Importing this module imports numba.

A gradient of a product is a product again, so those by inputs run on the kernels of the forward pass. What isn't
compiled is the definition itself.
"""
from . import gradients
from .fast import conv2d as _conv2d
from .fast import linear as _linear
from .gradients import (  # noqa: F401 (looked up by name)
    attention,
    embedding,
    gelu,
    group_norm,
    group_norm_silu,
    layer_norm,
    linear_geglu,
    pack_conv2d,
    pack_linear,
    quick_gelu,
    relu,
    silu,
    softmax,
    timestep_embedding,
    upsample_conv2d,
    upsample_nearest,
)


class linear(gradients.linear):
    """dx is `linear` with the transposed weight."""
    def x(g, weight):
        return _linear(g, gradients.matrix(weight).T)


class conv2d(gradients.conv2d):
    """dx is `conv2d` with the flipped, transposed weight; Winograd's way is open to it as well."""
    def x(g, weight, x_shape, stride, padding):
        weight = gradients.matrix(weight)
        spread = gradients.spread_out(g, weight.shape[2:], x_shape, stride, padding)
        return _conv2d(spread, gradients.flipped(weight))
