"""Convolution, by the one of four algorithms that suits its shape.

    y[n, i, j] = Σ over u, v of W[:, :, u, v] x[n, s·i + u − top, s·j + v − left] + b (+ r)

3×3 kernels of stride 1 go through Winograd's minimal filtering, with a quarter of the multiplications (`winograd`), kernels
with a few outputs take all taps in one product (`few_outputs`), and with few channels a pixel's products are so few that
patches are best read where they are (`direct`). All others are one matrix product whose rows are patches, gathered a block
at a time instead of all at once (`patches`, `matmul`): im2col, Chellapilla, Puri & Simard 2006, "High performance
convolutional neural networks for document processing".
"""
from ..arrays import empty, float32
from . import direct, epilogue, few_outputs, winograd
from .matmul import product
from .packing import packed
from .patches import Geometry


def conv2d(x, weight, bias=None, stride=1, padding=(0, 0, 0, 0), residual=None):
    """Convolution of a channels-last image; ValueError if the shapes do not fit.

    x: (N, H, W, I)   weight: (O, I, kh, kw)   bias: (O,), or (N, O) to shift each image by its own time embedding
    padding: zeros added at (top, bottom, left, right)   residual: like the result   → (N, H_out, W_out, O)
    """
    x = float32(x, "x")
    return _convolve(x, *x.shape[1:3], packed(weight), bias, stride, padding, residual)


def upsample_conv2d(x, weight, bias, height, width):
    """conv2d(upsample_nearest(x, height, width)), padded by 1; the enlarged image is read without being written.

    x: (N, H, W, I)   weight: (O, I, 3, 3)   bias: (O,)   → (N, height, width, O)
    """
    return _convolve(float32(x, "x"), height, width, packed(weight), bias, 1, (1, 1, 1, 1), None)


def _convolve(x, height, width, weight, bias, stride, padding, residual):
    """The convolution of x enlarged to height × width."""
    geometry = _geometry(x, height, width, weight, stride, padding)
    images, outputs = len(x), weight.shape[0]
    y = empty((images, geometry.out_height, geometry.out_width, outputs))
    for way in () if weight.dtype == "int8" else (direct, winograd, few_outputs):
        if way.suits(geometry, weight):
            return way.convolve(x, geometry, weight, *epilogue.checked(bias, residual, images, outputs, y.shape), y)
    return product(x, geometry, images * geometry.out_pixels, weight, bias, residual, y)


def _geometry(x, height, width, weight, stride, padding):
    """Of an image of height × width, padded; ValueError if the kernel does not fit it."""
    _, inputs, kernel_height, kernel_width = weight.shape
    top, bottom, left, right = padding
    out_height = (height + top + bottom - kernel_height) // stride + 1
    out_width = (width + left + right - kernel_width) // stride + 1
    if inputs != x.shape[-1] or min(out_height, out_width) < 1:
        raise ValueError(f"a kernel {weight.shape} does not fit an input {x.shape} with padding {padding}")
    return Geometry(height, width, inputs, kernel_height, kernel_width, stride, top, left, out_height, out_width,
                    *x.shape[1:3])
