"""Weights in the order in which the matrix product reads them.

A product y = x Wᵀ takes W in panels, as many outputs side by side as a register tile has columns:

    W (outputs, K) as stored                      packed: panels of `columns` outputs, K rows each
    ┌───────────── K ────────────┐                ┌─columns─┐ ┌─columns─┐ ┌─columns─┐
    │ output 0                   │                │ k = 0   │ │         │ │      0 0│   missing outputs
    │ output 1                   │       →        │ k = 1   │ │         │ │      0 0│   are zeros
    │ ...                        │                │ ...     │ │         │ │      0 0│
    └────────────────────────────┘                └─────────┘ └─────────┘ └─────────┘

so that the tile reads memory front to back. A convolution's W (O, I, kh, kw) becomes a matrix whose K runs over taps
first and then channels, k = (u · kw + v) · I + i, because channels are what is contiguous in a channels-last image.
"""
import math

import numpy as np
from numba import prange

from . import threads
from .arrays import aligned, flat, float32
from .compiling import floats_in, floats_out, inlined, integers_out, kernel, size
from .memory import load, next_job, store
from .microkernel import PRODUCT

COLUMNS = PRODUCT.columns
_BLOCK = 64                        # panel rows written at a time: 64 · 32 floats = 8 KB stay in the first-level cache


class Packed:
    """A weight in panels, made by `pack_linear` or `pack_conv2d`; it holds the only copy that is needed.

    shape: as in the checkpoint, (out, in) or (O, I, kh, kw)     panels: flat float32, ⌈out / columns⌉ · K · columns
    """

    def __init__(self, weight):
        weight = float32(weight, "weight")
        self.shape = weight.shape
        outputs, channels = self.shape[:2]
        count = -(-outputs // COLUMNS)
        self.panels = aligned(count * COLUMNS * self.depth)
        threads.launch(pack, count, outputs, channels, math.prod(self.shape[2:]), flat(weight), self.panels,
                       parallel=weight.size > 100_000)

    @property
    def depth(self):
        """K, the number of terms in each output's sum."""
        return math.prod(self.shape[1:])

    @property
    def nbytes(self):
        """Memory taken."""
        return self.panels.nbytes

    def unpack(self):
        """The weight as stored in the checkpoint, exactly."""
        outputs, channels = self.shape[:2]
        matrix = self.panels.reshape(-1, self.depth, COLUMNS).swapaxes(1, 2).reshape(-1, self.depth)[:outputs]
        taps_last = matrix.reshape(outputs, -1, channels).swapaxes(1, 2)
        return np.ascontiguousarray(taps_last).reshape(self.shape)

    def __repr__(self):
        return f"Packed{self.shape}"


def pack_linear(weight):
    """The layout `linear` wants: (out, in) in panels. float32, or float16, which float32 holds exactly."""
    return Packed(weight)


def pack_conv2d(weight):
    """The layout `conv2d` wants: (O, I, kh, kw) in panels. float32, or float16, which float32 holds exactly."""
    return Packed(weight)


def packed(weight):
    """The weight in panels, packed now if it is an array; → Packed"""
    return weight if isinstance(weight, Packed) else Packed(weight)


@kernel(size, integers_out, size, size, size, size, floats_in, floats_out)
def pack(thread_count, counter, panels, outputs, channels, taps, weight, packed):
    """A job is a panel."""
    for _ in prange(thread_count):
        panel = next_job(counter)
        while panel < panels:
            _pack_panel(panel, outputs, channels, taps, weight, packed)
            panel = next_job(counter)


@inlined
def _pack_panel(panel, outputs, channels, taps, weight, packed):
    depth = channels * taps
    first = panel * COLUMNS
    start = first * depth
    for k0 in range(0, depth, _BLOCK):
        end = min(k0 + _BLOCK, depth)
        for lane in range(COLUMNS):
            if first + lane < outputs:
                tap, channel = k0 // channels, k0 % channels
                row = (first + lane) * depth
                for k in range(k0, end):
                    store(packed, start + k * COLUMNS + lane, load(weight, row + channel * taps + tap))
                    channel += 1
                    if channel == channels:
                        channel, tap = 0, tap + 1
            else:
                for k in range(k0, end):
                    store(packed, start + k * COLUMNS + lane, 0)
