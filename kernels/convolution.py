"""Convolution as a matrix product whose rows are patches (im2col), gathered a block at a time instead of all at once.

    y[n, i, j] = Σ over u, v of W[:, :, u, v] x[n, s·i + u − top, s·j + v − left] + b (+ r)

The matrix is that of Chellapilla, Puri & Simard 2006, "High performance convolutional neural networks for document
processing"; `patches` gathers its rows and `matmul` multiplies them.
"""
import numpy as np

from .arrays import float32
from .matmul import product
from .packing import packed
from .patches import Geometry


def conv2d(x, weight, bias=None, stride=1, padding=(0, 0, 0, 0), residual=None):
    """Convolution of a channels-last image; ValueError if the shapes do not fit.

    x: (N, H, W, I)   weight: (O, I, kh, kw)   bias: (O,), or (N, O) to shift each image by its own time embedding
    padding: zeros added at (top, bottom, left, right)   residual: like the result   → (N, H_out, W_out, O)
    """
    x, weight = float32(x, "x"), packed(weight)
    images, height, width, channels = x.shape
    outputs, inputs, kernel_height, kernel_width = weight.shape
    top, bottom, left, right = padding
    out_height = (height + top + bottom - kernel_height) // stride + 1
    out_width = (width + left + right - kernel_width) // stride + 1
    if inputs != channels or min(out_height, out_width) < 1:
        raise ValueError(f"a kernel {weight.shape} does not fit an input {x.shape} with padding {padding}")
    geometry = Geometry(height, width, channels, kernel_height, kernel_width, stride, top, left, out_height, out_width)
    y = np.empty((images, out_height, out_width, outputs), np.float32)
    return product(x, geometry, images * out_height * out_width, weight, bias, residual, y)
