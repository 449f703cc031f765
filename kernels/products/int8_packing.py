"""Weights of bytes in panels, as the int8 product reads them; what int8 is: kernels/int8.py.

A panel has COLUMNS outputs. For each tap of the kernel (a matrix has one) and each block of BLOCK channels it has

    −128 Σ of each output's bytes in the block                        one row of `columns` words
    ⌈channels / 4⌉ rows of `columns` words of four bytes              channels beyond the last are zeros

and after all blocks of a tap one row more: the scales of its outputs, as float32.
"""
import math

import numpy as np

from ..arrays import aligned, as_float32
from ..int8 import BLOCK, Int8
from .microkernel import PRODUCT

COLUMNS = PRODUCT.columns
WORDS = BLOCK // 4                                       # of a block, in a panel
NUMBERS_AT_ONCE = 1 << 20                                # about as many are rounded together, so that temporaries stay small


class PackedInt8:
    """A weight in panels of bytes; it holds the only copy that is needed.

    shape: as in the checkpoint, (out, in) or (O, I, kh, kw)     panels: flat int32, see above
    is_finite: whether all numbers were (neither infinite nor NaN)
    """
    dtype = "int8"

    def __init__(self, weight):
        """weight: (out, in) or (O, I, kh, kw), an `Int8`, float32, float16, or uint16, which means bfloat16"""
        self.shape, self.is_finite = weight.shape, True
        outputs, channels, taps = self.shape[0], self.shape[1], self.taps
        count, rows = -(-outputs // COLUMNS), taps * tap_rows(channels)
        self.panels = aligned(count * rows * COLUMNS).view(np.int32)
        panels = self.panels.reshape(count, rows, COLUMNS)
        at_once = max(1, NUMBERS_AT_ONCE // (COLUMNS * self.depth)) * COLUMNS
        for first in range(0, outputs, at_once):
            some = _part(weight, slice(first, first + at_once))
            self.is_finite = self.is_finite and bool(np.isfinite(some.scale).all())
            _fill(panels[first // COLUMNS:][:-(-len(some.scale) // COLUMNS)], some, channels, taps)

    @property
    def taps(self):
        """kh · kw of a convolution, 1 of a matrix."""
        return math.prod(self.shape[2:])

    @property
    def depth(self):
        """K, the number of terms in each output's sum."""
        return math.prod(self.shape[1:])

    @property
    def nbytes(self):
        """Memory taken."""
        return self.panels.nbytes

    def unpack(self):
        """The weight as it was rounded → Int8"""
        outputs, channels = self.shape[:2]
        rows = tap_rows(channels)
        panels = self.panels.reshape(-1, self.taps * rows, COLUMNS)
        numbers = np.empty((len(panels) * COLUMNS, channels, self.taps), np.int8)
        for tap, start, count, row in blocks(channels, self.taps):
            words = np.ascontiguousarray(panels[:, row + 1:row + 1 + -(-count // 4)].swapaxes(1, 2))
            numbers[:, start:start + count, tap] = words.view(np.int8).reshape(len(numbers), -1)[:, :count]
        scales = panels[:, rows - 1::rows].swapaxes(1, 2).reshape(-1, self.taps)[:outputs].view(np.float32)
        return Int8(numbers[:outputs].reshape(self.shape), scales.reshape(outputs, *self.shape[2:]))

    def __repr__(self):
        return f"PackedInt8({self.shape})"


def blocks(channels, taps):
    """(tap, first channel, channels, row of the panel where it begins) of each block"""
    return [(tap, start, min(BLOCK, channels - start), tap * tap_rows(channels) + start // BLOCK * (WORDS + 1))
            for tap in range(taps) for start in range(0, channels, BLOCK)]


def tap_rows(channels):
    """Rows of words of a panel for each tap: bytes, the row before each block, the row of scales."""
    return -(-channels // 4) + -(-channels // BLOCK) + 1


def _part(weight, rows):
    """Some outputs of a weight → Int8"""
    if isinstance(weight, Int8):
        return Int8(weight.numbers[rows], weight.scale[rows])
    with np.errstate(invalid="ignore"):                  # what is not finite is told by its scale
        return Int8.nearest(as_float32(weight[rows]))


def _fill(panels, weight, channels, taps):
    """Write an Int8 into panels (count, rows of words, columns), int32."""
    numbers = np.zeros((taps, len(panels) * COLUMNS, -(-channels // 4) * 4), np.int8)
    numbers[:, :len(weight.numbers), :channels] = weight.numbers.reshape(-1, channels, taps).transpose(2, 0, 1)
    numbers = numbers.reshape(taps, len(panels), COLUMNS, -1)
    for tap, start, _, row in blocks(channels, taps):
        some = np.ascontiguousarray(numbers[tap, :, :, start:start + BLOCK])
        panels[:, row] = -128 * some.sum(axis=2, dtype=np.int32)
        panels[:, row + 1:row + 1 + some.shape[2] // 4] = some.view(np.int32).swapaxes(1, 2)
    scales = np.zeros((len(panels) * COLUMNS, taps), np.float32)
    scales[:len(weight.scale)] = weight.scale.reshape(-1, taps)
    rows = tap_rows(channels)
    panels[:, rows - 1::rows] = scales.view(np.int32).reshape(-1, COLUMNS, taps).swapaxes(1, 2)
