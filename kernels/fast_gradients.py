"""The compiled twins of gradients.py, by the same names. Importing this module imports numba.

The gradient of a product's input is a product again, with the weight read the other way, and runs on the kernels of the
forward pass; those of weights, norms, activations and attention have kernels of their own (backward/). What is not here
is the definition itself.
"""
import functools
import math

import numpy as np

from . import fast, gradients
from .activations import GELU, QUICK_GELU, SILU
from .backward import winograd_weights
from .backward.attention import attention_gradient
from .backward.elementwise import activation_gradient, cell_sums, gate_gradient, total
from .backward.normalization import group_norm_gradient, layer_norm_gradient
from .backward.paired_weights import paired_gradient
from .backward.sums import row_sums
from .backward.transposed import of_taps, transposed
from .backward.weights import convolution_gradient, matrix_gradient
from .gradients import embedding, pack_conv2d, pack_linear, relu, rows, softmax, timestep_embedding
from .products import amx_tile, direct
from .products.microkernel import LANES
from .products.packing import packed

__all__ = ["attention", "conv2d", "embedding", "gelu", "group_norm", "group_norm_silu", "layer_norm", "linear", "linear_geglu",
           "pack_conv2d", "pack_linear", "quick_gelu", "relu", "silu", "softmax", "timestep_embedding", "total",
           "upsample_conv2d", "upsample_nearest"]


def in_tiles(weight):
    """Whether a weight's products are those of bfloat16 in tile registers."""
    return amx_tile.HAS_BFLOAT16 and not isinstance(weight, np.ndarray) and weight.dtype == "bfloat16"


class linear(gradients.linear):
    _packed = staticmethod(packed)

    def x(g, weight):
        return fast.linear(g, transposed(weight))

    def weight(g, x, weight):
        if in_tiles(weight):
            return paired_gradient(rows(g)[None, None], rows(x)[None, None], (1, 1), (0, 0, 0, 0))[:, :, 0, 0]
        return matrix_gradient(rows(g), rows(x))

    def bias(g):
        return row_sums(g)[0]


def over_pixels(g, shape):
    """As in gradients.py"""
    return row_sums(g, len(g)) if len(shape) == 2 else row_sums(g)[0]


class conv2d(gradients.conv2d):
    """dx of stride 1 pads g inside the kernel, and Winograd's way is open to it; of stride s it comes in s² parts."""
    _packed = staticmethod(packed)

    def x(g, weight, x_shape, stride, padding):
        turned = transposed(weight)
        _, _, kh, kw = turned.shape
        top, bottom, left, right = kh - 1 - padding[0], kh - 1 - padding[1], kw - 1 - padding[2], kw - 1 - padding[3]
        if stride == 1 and min(top, bottom, left, right) >= 0:
            return fast.conv2d(g, turned, padding=(top, bottom, left, right))
        if turned.dtype != "float32" and turned.shape[1] % 2:
            return fast.conv2d(gradients.spread_out(g, (kh, kw), x_shape, stride, padding), turned)
        return in_parts(g, turned, x_shape, stride, padding)

    def weight(g, x, weight, stride, padding):
        if stride == 1 and in_tiles(weight):
            return paired_gradient(g, x, weight.shape[2:], padding)
        return convolution_gradient(g, x, tuple(weight.shape[2:]), stride, tuple(padding))

    def bias(g, bias_shape):
        return over_pixels(g, bias_shape)


def in_parts(g, turned, x_shape, stride, padding):
    """dx of stride s without products by the zeros between g's pixels      turned: the weight, `transposed`

    dx[s·m + a, s·n + b] = Σ W[:, :, u, v] g[m + (a + top − u)/s, n + (b + left − v)/s] over those u and v alone for which s
    divides that: for each a and b a convolution of g itself, by a part of the kernel.
    """
    dx = np.zeros(x_shape, np.float32)
    _, _, kh, kw = turned.shape
    for a, u, down, *above in parts(g.shape[1], x_shape[1], kh, stride, padding[0]):
        for b, v, across, *beside in parts(g.shape[2], x_shape[2], kw, stride, padding[2]):
            dx[:, a::stride, b::stride] = fast.conv2d(g[:, down, across], of_taps(turned, u, v), padding=(*above, *beside))
    return dx


def parts(seen, size, taps, stride, before):
    """Along one axis, yield for each a: a, which of the turned taps, which of g's `seen` rows, zeros before and after these"""
    for a in range(min(stride, size)):
        some = range((a + before) % stride, taps, stride)
        if some:
            first = (a + before - some[-1]) // stride                    # row of g that row a of dx meets by the last tap
            end = first + -(-(size - a) // stride) + len(some) - 1
            if first < seen and end > 0:
                yield (a, slice(taps - 1 - some[-1], None, stride), slice(max(0, first), min(seen, end)),
                       max(0, -first), max(0, end - seen))


class linear_geglu(gradients.linear_geglu):
    _packed = staticmethod(packed)

    def x(g, x, weight, bias):
        return linear.x(gate_gradient(g, fast.linear(x, weight, bias)), weight)

    def x_weight_bias(g, x, weight, bias):
        g = gate_gradient(g, fast.linear(x, weight, bias))
        return linear.x(g, weight), linear.weight(g, x, weight), linear.bias(g)


class group_norm(gradients.group_norm):
    def x(g, x, weight, bias, groups, eps):
        return group_norm_gradient(g, x, weight, bias, groups, eps, False)[0]

    def x_weight_bias(g, x, weight, bias, groups, eps):
        return group_norm_gradient(g, x, weight, bias, groups, eps, False)


class group_norm_silu(gradients.group_norm_silu):
    def x(g, x, weight, bias, groups, eps):
        return group_norm_gradient(g, x, weight, bias, groups, eps, True)[0]

    def x_weight_bias(g, x, weight, bias, groups, eps):
        return group_norm_gradient(g, x, weight, bias, groups, eps, True)


class layer_norm(gradients.layer_norm):
    def x(g, x, weight, eps):
        return layer_norm_gradient(g, x, weight, eps)[0]

    def x_weight_bias(g, x, weight, eps):
        return layer_norm_gradient(g, x, weight, eps)


class silu(gradients.silu):
    def x(g, x):
        return activation_gradient(g, x, SILU)


class gelu(gradients.gelu):
    def x(g, x):
        return activation_gradient(g, x, GELU)


class quick_gelu(gradients.quick_gelu):
    def x(g, x):
        return activation_gradient(g, x, QUICK_GELU)


class attention(gradients.attention):
    def q_k_v(g, y, q, k, v, heads, causal):
        return attention_gradient(g, y, q, k, v, heads, causal)


class upsample_nearest(gradients.upsample_nearest):
    def x(g, x_shape):
        return cell_sums(g, *x_shape[1:3])


class upsample_conv2d(gradients.upsample_conv2d):
    _packed = staticmethod(packed)

    def x(g, weight, x_shape):
        weight = packed(weight)
        few = weight.dtype == "float32" and math.prod(weight.shape[:2]) <= 2 * direct.MOST_PRODUCTS
        if few and g.shape[1:3] == (2 * x_shape[1], 2 * x_shape[2]):
            return doubled_x(g, weight)
        return cell_sums(conv2d.x(g, weight, (x_shape[0], *g.shape[1:3], x_shape[3]), 1, (1, 1, 1, 1)), *x_shape[1:3])

    def weight(g, x, weight):
        if not in_tiles(weight) and winograd_weights.suits(g, x, (3, 3), 1):
            return winograd_weights.winograd_gradient(g, x, (1, 1, 1, 1), g.shape[1:3])
        if g.shape[1:3] == (2 * x.shape[1], 2 * x.shape[2]):
            return doubled_weight(g, x, weight)
        return conv2d.weight(g, fast.upsample_nearest(x, *g.shape[1:3]), weight, 1, (1, 1, 1, 1))

    def bias(g, bias_shape):
        return over_pixels(g, bias_shape)


def doubled_x(g, weight):
    """dx of an image that was seen at twice its size, in steps of 2 over g, with a kernel of 4 × 4

    dx[i, j] is the sum over its four pixels (2 i + a, 2 j + b) of g convolved with the turned kernel, which moves with a and b:
    the sum of the four moved kernels does all at once. 4 · 4 products for each pixel of x in place of 4 · 9; Winograd's way
    needs 4 · 36 / 16 of them, and is faster with more channels.
    """
    turned = transposed(weight).unpack()
    kernel = np.zeros((*turned.shape[:2], 4, 4), np.float32)
    for a in (0, 1):
        for b in (0, 1):
            kernel[:, :, a:a + 3, b:b + 3] += turned
    return fast.conv2d(g, kernel, stride=2, padding=(1, 1, 1, 1))


FELL = np.array([[[1, 0, 0], [0, 1, 1], [0, 0, 0]], [[0, 0, 0], [1, 1, 0], [0, 0, 1]]], np.float32)


def doubled_weight(g, x, weight):
    """dW of an image of twice the size: pixels (2 i + a, 2 j + b) saw 2 × 2 of x, rows i + a − 1 and i + a, not 3 × 3

    Row u of the kernel fell on row i + ⌊(a + u − 1) / 2⌋: on that of i − 1, i and i + 1 where FELL[a, :, u] is 1. So sums are
    taken for 2 × 2, 4 · 4 products for each pixel of x in place of 4 · 9, and then go to the taps that fell there. A few
    outputs side by side for all a and b fill one vector: there sums for 3 × 3 are taken at once.
    """
    sums = paired_gradient if in_tiles(weight) else functools.partial(convolution_gradient, stride=1)
    parts = [(a, b, g[:, a::2, b::2]) for a in (0, 1) for b in (0, 1)]
    if 4 * weight.shape[0] <= LANES:
        seen = sums(np.concatenate([part for *_, part in parts], axis=-1), x, (3, 3), padding=(1, 1, 1, 1)).reshape(4, -1, 9)
        fell = [np.kron(FELL[a], FELL[b]) for a, b, _ in parts]
    else:
        seen = [sums(part, x, (2, 2), padding=(1 - a, a, 1 - b, b)).reshape(-1, 4) for a, b, part in parts]
        fell = [np.kron(FELL[a, a:a + 2], FELL[b, b:b + 2]) for a, b, _ in parts]
    return fast.linear(np.concatenate([*seen], axis=-1), np.concatenate(fell).T).reshape(weight.shape)
