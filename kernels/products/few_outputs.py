"""Convolution to a few outputs: a product with all taps side by side, then each output pixel adds up what its taps say.

    z[p, (u, v), :] = W[:, :, u, v] x[p]          y[n, i, j] = Σ over u, v of z[n, i + u − top, j + v − left, (u, v)] + b (+ r)

A panel of weights is as wide as a register tile. One with 1 or 3 outputs in it is nearly empty, for each of the taps; with all
taps side by side it is full, and the product has a taps-th of the terms. An image that is enlarged by nearest neighbours needs
z of its own pixels only, which are read more than once.
"""
import numpy as np

from .. import threads
from ..arrays import flat
from ..codegen.compiling import floats_in, floats_out, inlined, kernel, size, sizes_of
from ..codegen.memory import load, next_job, store
from . import epilogue
from .matmul import product
from .packing import COLUMNS, packed
from .patches import Geometry, rows_of_a_matrix


def suits(geometry, weight):
    """Whether this computes less than half of what panels of single taps would; strides would leave most of z unused."""
    outputs, taps = weight.shape[0], geometry.kernel_height * geometry.kernel_width
    return geometry.stride == 1 and 2 * -(-taps * outputs // COLUMNS) <= taps * -(-outputs // COLUMNS)


def convolve(x, geometry, weight, bias, residual, y):
    """y = conv(x) + bias (+ residual), written into y and returned

    x: contiguous (N, H, W, I)   geometry: of the image as the kernel sees it, which is x enlarged if x is smaller
    weight: Packed   bias, residual: as `epilogue.checked` gives them   y: (N, H_out, W_out, O)
    """
    images, height, width, channels = x.shape
    outputs, _, kh, kw = weight.shape
    side_by_side = weight.unpack().transpose(2, 3, 0, 1).reshape(kh * kw * outputs, channels)
    rows = images * height * width
    z = np.empty((rows, kh * kw * outputs), np.float32)
    product(x, rows_of_a_matrix(rows, channels), rows, packed(side_by_side), None, None, z)
    threads.launch(add_taps, tuple(geometry), images, height, width, outputs, flat(z), bias, residual, flat(y),
                   parallel=y.size * kh * kw > 100_000)
    return y


@kernel(sizes_of(Geometry), size, size, size, size, floats_in, floats_in, floats_in, floats_out)
def add_taps(thread, counter, geometry, images, height, width, outputs, z, bias, residual, y):
    """A job is a row of an image."""
    geometry = Geometry(*geometry)
    row_of_z = geometry.kernel_height * geometry.kernel_width * outputs
    job = next_job(counter)
    while job < images * geometry.out_height:
        image, i = divmod(job, geometry.out_height)
        start = job * geometry.out_width * outputs
        shift = epilogue.bias_of(image, outputs, bias)
        for at in range(geometry.out_width * outputs):
            added = load(residual, start + at) if residual.size > 0 else np.float32(0)
            store(y, start + at, load(bias, shift + at % outputs) + added)
        for u in range(geometry.kernel_height):
            row = i + u - geometry.top
            if 0 <= row and row < geometry.height:
                row = image * height + row * height // geometry.height
                for v in range(geometry.kernel_width):
                    tap = (u * geometry.kernel_width + v) * outputs
                    first, end = max(0, geometry.left - v), min(geometry.out_width, geometry.width + geometry.left - v)
                    begin, rest = divmod((first + v - geometry.left) * width, geometry.width)
                    for o in range(outputs):             # not innermost: beginning a loop takes longer than so few
                        _add_row(z, row * width * row_of_z + tap + o, begin, rest, row_of_z, width, geometry.width, y,
                                 start + first * outputs + o, outputs, end - first)
        job = next_job(counter)


@inlined
def _add_row(z, source, column, rest, row_of_z, width, seen, y, target, outputs, count):
    """Add one number of each of `count` pixels of z to y: the pixels of `width` that are seen as `seen`, from `column` on"""
    for j in range(count):
        at = target + j * outputs
        store(y, at, load(y, at) + load(z, source + column * row_of_z))
        rest += width                                    # the next column: a division would take longer than all else
        while rest >= seen:
            column, rest = column + 1, rest - seen
