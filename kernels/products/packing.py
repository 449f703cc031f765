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

In bfloat16 a row of a panel has two terms for each output, k and k + 1 side by side in one word, which is how the
processor multiplies them; an odd K is filled up by zeros:

    output 0   output 0   output 1   output 1          → number k of output j of panel p is element
    k = 0      k = 1      k = 0      k = 1     ...
    k = 2      k = 3      k = 2      k = 3     ...           ((p · ⌈K/2⌉ + ⌊k/2⌋) · columns + j) · 2 + k mod 2
"""
import math
from typing import NamedTuple

import numpy as np
from numba import types

from .. import threads
from ..arrays import aligned, flat
from ..codegen.bfloat16 import narrowed, widened
from ..codegen.compiling import floats_out, halves_in, halves_out, inlined, integers_out, kernel, size, sizes_of
from ..codegen.memory import load, load_float, load_half, next_job, store_float, store_half
from ..int8 import Int8
from .int8_packing import PackedInt8
from .microkernel import PRODUCT

COLUMNS = PRODUCT.columns
FLOAT32, FLOAT16, BFLOAT16 = range(3)                    # what a weight may come as; bfloat16 as uint16
_KINDS = {"f4": FLOAT32, "f2": FLOAT16, "u2": BFLOAT16}
_RUN = 256                                               # about as many numbers of an output are moved at a time

_ZERO = np.float32(0)
_SIGN, _REST, _EXPONENT, _MANTISSA = np.uint32(0x8000), np.uint32(0x7fff), np.uint32(0x7c00), np.uint32(0x3ff)
_SHIFT, _UP, _BIAS, _HIGHEST = np.uint32(13), np.uint32(16), np.uint32((127 - 15) << 23), np.uint32(255 << 23)
_POSITIVE = np.uint32(0x7fffffff)
_SUBNORMAL = np.float32(2**-24)


class Packed:
    """A weight in panels, made by `pack_linear` or `pack_conv2d`; it holds the only copy that is needed.

    shape: as in the checkpoint, (out, in) or (O, I, kh, kw)     dtype: "float32" or "bfloat16"
    panels: flat float32, ⌈out / columns⌉ · K · columns, or uint16, ⌈out / columns⌉ · 2 ⌈K / 2⌉ · columns
    is_finite: whether all numbers are (neither infinite nor NaN); looked at while packing, when they pass by anyway
    """

    def __init__(self, weight, dtype="float32"):
        weight = _contiguous(weight)
        self.shape, self.dtype = weight.shape, dtype
        outputs, channels = self.shape[:2]
        count = -(-outputs // COLUMNS)
        if dtype == "float32":
            self.panels = aligned(count * COLUMNS * self.depth)
        else:
            self.panels = aligned(count * COLUMNS * (-(-self.depth // 2))).view(np.uint16)
        outcome = np.ones(1, np.int64)
        sizes = Sizes(outputs, channels, math.prod(self.shape[2:]))
        threads.launch(pack, tuple(sizes), flat(weight).view(np.uint16), _KINDS[weight.dtype.str[1:]],
                       self.panels.view(np.uint16), dtype != "float32", outcome,
                       parallel=weight.size > 100_000, scratch=(_RUN + sizes.taps) * (COLUMNS + 1))
        self.is_finite = bool(outcome[0])

    @property
    def depth(self):
        """K, the number of terms in each output's sum."""
        return math.prod(self.shape[1:])

    @property
    def nbytes(self):
        """Memory taken."""
        return self.panels.nbytes

    def unpack(self):
        """The weight as stored in the checkpoint, exactly: float32, or bfloat16 as uint16."""
        outputs, channels = self.shape[:2]
        terms = 4 // self.panels.itemsize                # side by side
        rows = self.panels.reshape(-1, -(-self.depth // terms), COLUMNS, terms)
        matrix = rows.swapaxes(1, 2).reshape(-1, rows.shape[1] * terms)[:outputs, :self.depth]
        taps_last = matrix.reshape(outputs, -1, channels).swapaxes(1, 2)
        return np.ascontiguousarray(taps_last).reshape(self.shape)

    def __repr__(self):
        return f"Packed{self.shape}" if self.dtype == "float32" else f"Packed({self.shape}, {self.dtype})"


def pack_linear(weight, dtype="float32"):
    """The layout `linear` wants: (out, in) in panels.

    weight: float32, float16, or uint16, which means bfloat16     dtype: "float32", "bfloat16" or "int8", to which it is rounded
    """
    return PackedInt8(_contiguous(weight)) if dtype == "int8" else Packed(weight, dtype)


def pack_conv2d(weight, dtype="float32"):
    """The layout `conv2d` wants: (O, I, kh, kw) in panels; otherwise as `pack_linear`."""
    return pack_linear(weight, dtype)


def packed(weight):
    """The weight in panels, packed now if it is an array, asked for now if it has `read`; → Packed"""
    if hasattr(weight, "read"):
        weight = weight.read()
    if isinstance(weight, (Packed, PackedInt8)):
        return weight
    if isinstance(weight, Int8):
        return PackedInt8(weight)
    return Packed(weight, "bfloat16" if weight.dtype == np.uint16 else "float32")


def _contiguous(weight):
    """`weight` in one piece of memory; TypeError if it is of no kind that weights have."""
    weight = np.asarray(weight)
    if weight.dtype.str[1:] not in _KINDS:
        raise TypeError(f"weight is {weight.dtype}, but float32, float16 and uint16 (bfloat16) are what can be packed")
    return np.require(weight, weight.dtype.newbyteorder("="), ["C", "A"])


@inlined
def packed_depth(depth, panels):
    """How many terms a panel has for each output: K, or the next even number in panels of bfloat16."""
    return depth if panels.itemsize == 4 else (depth + 1) // 2 * 2


@inlined
def element(panels, depth, k, output):
    """W[output, k] as float32, from panels of either kind."""
    terms = 4 // panels.itemsize                         # side by side
    panel, lane = output // COLUMNS, output % COLUMNS
    row = panel * (packed_depth(depth, panels) // terms) + k // terms
    number = load(panels, (row * COLUMNS + lane) * terms + k % terms)
    return np.float32(number) if panels.itemsize == 4 else widened(number)


class Sizes(NamedTuple):
    """Of a weight."""
    outputs: int
    channels: int
    taps: int                                            # kh · kw of a convolution, 1 of a matrix


@kernel(sizes_of(Sizes), halves_in, size, halves_out, types.boolean, integers_out, floats_out, size)
def pack(thread, counter, sizes, weight, kind, packed, narrow, is_finite, memory, share):
    """A job is a panel. is_finite[0] becomes 0 if a number is not finite."""
    sizes = Sizes(*sizes)
    panels = (sizes.outputs + COLUMNS - 1) // COLUMNS
    panel = next_job(counter)
    while panel < panels:
        if not _pack_panel(panel, sizes, weight, kind, packed, narrow, memory, thread * share):
            is_finite[0] = 0
        panel = next_job(counter)


@inlined
def _pack_panel(panel, sizes, weight, kind, packed, narrow, memory, run):
    """→ whether all numbers are finite.

    A few channels at a time: the numbers of an output are widened in memory[run:], transposed into a block of
    [taps][channels][columns] after it, which stays in the first-level cache, and from there go to their rows.
    """
    channels, taps = sizes.channels, sizes.taps
    depth = channels * taps
    rows = (depth + 1) // 2 if narrow else depth
    step = max(1, _RUN // taps)
    block = run + step * taps
    highest = np.uint32(0)
    for c0 in range(0, channels, step):
        count = min(step, channels - c0)
        for lane in range(COLUMNS):
            output = panel * COLUMNS + lane
            if output < sizes.outputs:
                highest = max(highest, _widen(weight, kind, (output * channels + c0) * taps, count * taps, memory, run))
            else:
                for i in range(count * taps):
                    store_float(memory, run + i, _ZERO)
            for tap in range(taps):
                target = block + tap * count * COLUMNS + lane
                for c in range(count):
                    store_float(memory, target + c * COLUMNS, load_float(memory, run + c * taps + tap))
        for tap in range(taps):
            k = tap * channels + c0
            source = block + tap * count * COLUMNS
            if narrow:
                for c in range(count):
                    target = (panel * rows + (k + c) // 2) * COLUMNS * 2 + (k + c) % 2
                    for lane in range(COLUMNS):
                        number = load_float(memory, source + c * COLUMNS + lane)
                        store_half(packed, target + 2 * lane, narrowed(number))
            else:
                for i in range(count * COLUMNS):
                    store_float(packed, (panel * rows + k) * COLUMNS + i, load_float(memory, source + i))
    if narrow and depth % 2:
        for lane in range(COLUMNS):
            store_half(packed, ((panel * rows + rows - 1) * COLUMNS + lane) * 2 + 1, np.uint16(0))
    return highest < _HIGHEST


@inlined
def _widen(weight, kind, start, count, memory, run):
    """memory[run:] = `count` numbers of a weight of any kind as float32 → the largest of their bits but for the sign"""
    if kind == FLOAT32:
        for i in range(count):
            store_float(memory, run + i, load_float(weight, start + i))
    elif kind == BFLOAT16:
        for i in range(count):
            store_float(memory, run + i, widened(load_half(weight, start + i)))
    else:
        for i in range(count):
            store_float(memory, run + i, _from_float16(load_half(weight, start + i)))
    highest = np.uint32(0)
    for i in range(count):
        highest = max(highest, np.uint32(np.float32(load_float(memory, run + i)).view(np.uint32) & _POSITIVE))
    return highest


@inlined
def _from_float16(bits):
    """float32 from the bits of an IEEE half: 5 bits of exponent, 10 of mantissa"""
    bits = np.uint32(bits)
    rest = np.uint32(bits & _REST)
    normal = np.uint32(np.uint32(rest << _SHIFT) + _BIAS)
    special = np.uint32(np.uint32(rest << _SHIFT) | _HIGHEST)                        # infinity and NaN
    wide = special if rest >= _EXPONENT else normal
    small = np.float32(np.int32(rest)) * _SUBNORMAL
    size = np.uint32(np.float32(small).view(np.uint32)) if rest <= _MANTISSA else np.uint32(wide)
    return np.uint32(size | np.uint32(np.uint32(bits & _SIGN) << _UP)).view(np.float32)
