"""Matrix product with int8 weights: as in matmul.py, but rows of x become bytes on their way into A.

For each block of terms, a row of x is gathered as float32 into a temporary place, its largest number is found, and the
quotients go into A, rounded; the scale of the row stays beside it for the tile. What int8 is: kernels/int8.py. Where the
processor has tile registers for bytes (`amx_tile`), they sum blocks that fill them: sums are exact either way.

The weight's panels, as flat int32, are for each block of BLOCK terms of a panel

    −128 Σ of each output's bytes in the block                        one row of `columns` words
    ⌈terms / 4⌉ rows of `columns` words of four bytes                 terms beyond the last are zeros

and after all blocks of a panel, one row more: the scales of its outputs, as float32.
"""
import numpy as np
from numba import types

from ..arrays import aligned, as_float32
from ..codegen.compiling import floats_in, floats_out, inlined, kernel, size, sizes_of
from ..codegen.memory import load, next_job, store, store_byte
from ..int8 import BLOCK, HIGHEST, Int8
from . import amx_tile, blocking, epilogue
from .amx_tile import HAS_INT8 as HAS_AMX
from .blocking import COLUMNS, TAIL_ROWS, TILE_ROWS, Sizes
from .int8_tile import HAS_DOT, make_int8_tile, make_scaled_row
from .microkernel import PRODUCT
from .patches import Geometry, gather

WORDS = BLOCK // 4                                       # of a block, in a panel
STRIDE = WORDS if HAS_DOT else BLOCK                     # of rows of A in working memory, in words of 32 bits
OUTPUTS_AT_ONCE = 32 * COLUMNS                           # that are rounded together, so that temporaries stay small

_POSITIVE, _SHARE = np.uint32(0x7fffffff), np.float32(1 / HIGHEST)

full_tile = make_int8_tile(PRODUCT)
tail_tile = make_int8_tile(PRODUCT._replace(rows=TAIL_ROWS))
amx_full_tile, amx_half_tile = (amx_tile.make_amx_tile(rows, "tdpbusd") for rows in (amx_tile.ROWS, amx_tile.SIDE))
scaled_row = make_scaled_row(PRODUCT)


class PackedInt8:
    """A weight in panels of bytes; it holds the only copy that is needed.

    shape: as in the checkpoint, (out, in) or (O, I, 1, 1)     panels: flat int32, see above
    is_finite: whether all numbers were (neither infinite nor NaN)
    """
    dtype = "int8"

    def __init__(self, weight):
        """weight: (out, in) or (O, I, 1, 1), an `Int8`, float32, float16, or uint16, which means bfloat16"""
        self.shape, self.is_finite = weight.shape, True
        outputs, depth = self.shape[:2]
        count, rows = -(-outputs // COLUMNS), panel_rows(depth)
        self.panels = aligned(count * rows * COLUMNS).view(np.int32)
        panels = self.panels.reshape(count, rows, COLUMNS)
        for first in range(0, outputs, OUTPUTS_AT_ONCE):
            some = _part(weight, slice(first, first + OUTPUTS_AT_ONCE), depth)
            self.is_finite = self.is_finite and bool(np.isfinite(some.scale).all())
            _fill(panels[first // COLUMNS:][:-(-len(some.scale) // COLUMNS)], some, depth)

    @property
    def depth(self):
        """K, the number of terms in each output's sum."""
        return self.shape[1]

    @property
    def nbytes(self):
        """Memory taken."""
        return self.panels.nbytes

    def unpack(self):
        """The weight as it was rounded → Int8"""
        outputs, depth = self.shape[:2]
        panels = self.panels.reshape(-1, panel_rows(depth), COLUMNS)
        parts = []
        for start, row in blocks(depth):
            words = panels[:, row + 1:row + 1 + -(-min(BLOCK, depth - start) // 4)]
            parts.append(np.ascontiguousarray(words.swapaxes(1, 2)).view(np.int8)[..., :min(BLOCK, depth - start)])
        numbers = np.concatenate(parts, axis=-1).reshape(-1, depth)[:outputs]
        return Int8(numbers.reshape(self.shape), panels[:, -1].reshape(-1)[:outputs].view(np.float32).copy())

    def __repr__(self):
        return f"PackedInt8({self.shape})"


def blocks(depth):
    """(first term, row of the panel where the block begins) of each block of so many terms"""
    return [(start, start // BLOCK * (WORDS + 1)) for start in range(0, depth, BLOCK)]


def panel_rows(depth):
    """Rows of words of a panel: bytes, the row before each block, the row of scales at the end."""
    return -(-depth // 4) + -(-depth // BLOCK) + 1


def _part(weight, rows, depth):
    """Some rows of a weight → Int8 (rows, depth)"""
    if isinstance(weight, Int8):
        return Int8(weight.numbers[rows].reshape(-1, depth), weight.scale[rows])
    with np.errstate(invalid="ignore"):                  # what is not finite is told by its scale
        return Int8.nearest(as_float32(weight[rows].reshape(-1, depth)))


def _fill(panels, weight, depth):
    """Write an Int8 (rows, depth) into panels (count, rows of words, columns), int32."""
    numbers = np.zeros((len(panels) * COLUMNS, -(-depth // 4) * 4), np.int8)
    numbers[:len(weight.numbers), :depth] = weight.numbers
    numbers = numbers.reshape(len(panels), COLUMNS, -1)
    for start, row in blocks(depth):
        some = np.ascontiguousarray(numbers[:, :, start:start + BLOCK])
        panels[:, row] = -128 * some.sum(axis=2, dtype=np.int32)
        panels[:, row + 1:row + 1 + some.shape[2] // 4] = some.view(np.int32).swapaxes(1, 2)
    scales = np.zeros(len(panels) * COLUMNS, np.float32)
    scales[:len(weight.scale)] = weight.scale
    panels[:, -1] = scales.view(np.int32).reshape(-1, COLUMNS)


def scratch(block_rows, width):
    """float32 numbers of working memory for a job: A, its scales, a row that is being gathered or a tile's sums, C"""
    return block_rows * (STRIDE + 1) + BLOCK + (block_rows + TILE_ROWS) * width


words_in = types.Array(types.int32, 1, "C", readonly=True)


@kernel(sizes_of(Sizes), sizes_of(Geometry), floats_in, words_in, floats_in, floats_in, floats_out, floats_out, size,
        dtype="int8")
def multiply_int8(thread, counter, sizes, geometry, x, panels, bias, residual, y, memory, share):
    sizes, geometry = Sizes(*sizes), Geometry(*geometry)
    jobs = blocking.jobs_of(sizes)
    job = next_job(counter)
    while job < jobs:
        first, last, column, end = blocking.rectangle(job, sizes)
        if HAS_AMX:
            amx_tile.configure()
        _block(first, last, column, end, sizes, geometry, x, panels, bias, residual, y, memory, thread * share)
        if HAS_AMX:
            amx_tile.release()
        job = next_job(counter)


@inlined
def _block(first, last, column, end, sizes, geometry, x, panels, bias, residual, y, memory, a):
    """Rows first … last − 1, columns column … end − 1 of y. A begins at memory[a]; scales, a row, and C follow it.

    With a gate (fewer columns than outputs) C holds the panels of the values, then those of the gates.
    """
    width = sizes.width
    scales = a + sizes.block_rows * STRIDE
    row_at = scales + sizes.block_rows
    c = row_at + BLOCK
    value_panel, value_panels, gate_panel, all_panels = blocking.panels_of(column, end, sizes)
    rows_of_panel = (sizes.depth + 3) // 4 + (sizes.depth + BLOCK - 1) // BLOCK + 1
    for k0 in range(0, sizes.depth, BLOCK):
        terms = min(BLOCK, sizes.depth - k0)
        words = (terms + 3) // 4
        for m in range(first, last):
            gather(x, geometry, m, m + 1, k0, k0 + terms, memory, row_at, BLOCK, memory)
            store(memory, scales + m - first, _round_row(memory, row_at, terms, a + (m - first) * STRIDE))
        for p in range(all_panels):
            panel = value_panel + p if p < value_panels else gate_panel + p - value_panels
            top = panel * rows_of_panel
            start, outputs = (top + k0 // BLOCK * (WORDS + 1)) * COLUMNS, (top + rows_of_panel - 1) * COLUMNS
            if HAS_AMX and words % amx_tile.SIDE == 0:
                _by_amx(last - first, words, k0 > 0, memory, a, scales, panels, start, outputs, c + p * COLUMNS, width, row_at)
            else:
                _by_vectors(last - first, words, k0 > 0, memory, a, scales, panels, start, outputs, c + p * COLUMNS, width)

    epilogue.write_rectangle(memory, c, first, last, column, end, sizes, geometry.out_height * geometry.out_width,
                             bias, residual, y)


@inlined
def _by_vectors(rows, words, further, memory, a, scales, panels, start, outputs, c, width):
    """memory[c:] = A times a block of a panel, or has that added if `further`, by tiles in vector registers"""
    whole = blocking.rows_in_full_tiles(rows)
    for row in range(0, whole, TILE_ROWS):
        full_tile(memory, a + row * STRIDE, STRIDE, scales + row, c + row * width, width,
                  panels, start, outputs, words, further)
    for row in range(whole, rows, TAIL_ROWS):
        tail_tile(memory, a + row * STRIDE, STRIDE, scales + row, c + row * width, width,
                  panels, start, outputs, words, further)


@inlined
def _by_amx(rows, words, further, memory, a, scales, panels, start, outputs, c, width, sums):
    """The same by tile registers: their sums begin with −128 Σ of the panel's bytes in each row, and pass through
    memory[sums:]."""
    for row in range(0, rows, amx_tile.ROWS):
        if rows - row > amx_tile.SIDE:
            amx_full_tile(memory, a + row * STRIDE, STRIDE, panels, start + COLUMNS, memory, sums, COLUMNS, words,
                          panels, start, 0)
        else:
            amx_half_tile(memory, a + row * STRIDE, STRIDE, panels, start + COLUMNS, memory, sums, COLUMNS, words,
                          panels, start, 0)
        for i in range(min(amx_tile.ROWS, rows - row)):
            scaled_row(memory, sums + i * COLUMNS, scales + row + i, c + (row + i) * width, panels, outputs, further)


@inlined
def _round_row(memory, source, count, target):
    """memory[target:] = `count` numbers at memory[source:] over their scale, rounded, as the tile wants them → the scale

    Bytes are 128 more, so that they have no sign; up to three beyond the last meet zeros of the weight.
    """
    highest = np.uint32(0)
    for i in range(count):
        highest = max(highest, np.uint32(np.float32(load(memory, source + i)).view(np.uint32) & _POSITIVE))
    scale = np.float32(np.uint32(highest).view(np.float32)) * _SHARE
    inverse = np.float32(1) / scale if scale > 0 else np.float32(0)
    if HAS_DOT:
        for i in range(count):
            store_byte(memory, 4 * target + i, np.uint8(np.int32(np.rint(load(memory, source + i) * inverse)) + 128))
        for i in range(count, (count + 3) // 4 * 4):
            store_byte(memory, 4 * target + i, np.uint8(0))
    else:
        for i in range(count):
            store(memory, target + i, np.rint(load(memory, source + i) * inverse))
        for i in range(count, (count + 3) // 4 * 4):
            store(memory, target + i, np.float32(0))
    return scale
