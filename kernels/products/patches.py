"""Implicit im2col: the patches under a convolution's kernel, gathered a block at a time.

Row m = (n, i, j) of the matrix that im2col would build holds x[n, s·i + u − top, s·j + v − left, :] for all taps (u, v)
and zeros where the patch leaves the image: kh · kw · C numbers. That matrix is kh · kw times as large as the image
and is never built; `gather` writes the part that a block of the matrix product needs into a small buffer that stays in
the cache. Padding, stride and ragged edges end here. A linear layer is the 1×1 case with tokens for pixels.
"""
from typing import NamedTuple

import numpy as np

from ..codegen.bfloat16 import HAS_DOT, factors_per_word, make_narrow_run, store_factor
from ..codegen.compiling import inlined
from ..codegen.memory import load
from .microkernel import LANES

narrow_run = make_narrow_run(LANES)


class Geometry(NamedTuple):
    """Where the rows of a product come from: an image that is enlarged by nearest neighbours while it is read, if at all."""
    height: int                                          # of the input as the kernel sees it
    width: int
    channels: int
    kernel_height: int
    kernel_width: int
    stride: int
    top: int                                             # zeros above and left of the input
    left: int
    out_height: int
    out_width: int
    rows: int                                            # of the input as it is in memory
    columns: int

    @property
    def out_pixels(self):
        """Rows of an image."""
        return self.out_height * self.out_width


def rows_of_a_matrix(rows, channels):
    """The geometry of a plain (rows, channels) matrix."""
    return Geometry(1, rows, channels, 1, 1, 1, 0, 0, 1, rows, 1, rows)


@inlined
def enlarged(geometry):
    """Whether the kernel sees more pixels than there are in memory."""
    return geometry.rows != geometry.height or geometry.columns != geometry.width


def make_gather(per_word, put_run):
    """→ gather(x, geometry, first, last, k0, k1, buffer, start, row_stride, panels), for use in kernels.

    buffer[start + r · row_stride :] = columns k0 … k1 − 1 of row first + r, for rows first … last − 1

    per_word(panels): columns in a word of the buffer, of which `start` and `row_stride` count words, for products with `panels`
    put_run(x, source, count, buffer, target, panels): columns number target … of the buffer become numbers source … of x, or
    zeros if `source` is negative
    """
    @inlined
    def gather(x, geometry, first, last, k0, k1, buffer, start, row_stride, panels):
        terms = per_word(panels)
        height, width, channels = geometry.height, geometry.width, geometry.channels
        first_tap, first_channel = divmod(k0, channels)
        first_u, first_v = divmod(first_tap, geometry.kernel_width)
        n, pixel = divmod(first, geometry.out_height * geometry.out_width)
        i, j = divmod(pixel, geometry.out_width)
        for m in range(first, last):
            target = (start + (m - first) * row_stride) * terms
            u, v, channel = first_u, first_v, first_channel
            k = k0
            while k < k1:                                    # a run of channels of one tap
                count = min(channels - channel, k1 - k)
                row, column = i * geometry.stride + u - geometry.top, j * geometry.stride + v - geometry.left
                if 0 <= row and row < height and 0 <= column and column < width:
                    if enlarged(geometry):
                        row, column = row * geometry.rows // height, column * geometry.columns // width
                    source = ((n * geometry.rows + row) * geometry.columns + column) * channels + channel
                    put_run(x, source, count, buffer, target, panels)
                else:
                    put_run(x, -1, count, buffer, target, panels)
                k += count
                target += count
                channel = 0
                v += 1
                if v == geometry.kernel_width:
                    u, v = u + 1, 0
            if panels.itemsize == 2 and (k1 - k0) % 2:
                put_run(x, -1, 1, buffer, target, panels)
            j += 1                                           # the next pixel: divisions would take as long as a run
            if j == geometry.out_width:
                i, j = i + 1, 0
                if i == geometry.out_height:
                    n, i = n + 1, 0
    return gather


@inlined
def _put_factors(x, source, count, buffer, target, panels):
    """Numbers as they are beside panels of float32; rounded to bfloat16 beside such, in pairs if the processor has them."""
    if source < 0:
        for c in range(count):
            store_factor(buffer, target + c, np.float32(0), panels)
    elif HAS_DOT and panels.itemsize == 2:
        narrow_run(x, source, buffer, target, count)
    else:
        for c in range(count):
            store_factor(buffer, target + c, load(x, source + c), panels)


gather = make_gather(factors_per_word, _put_factors)
