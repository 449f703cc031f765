"""Matrix product with packed weights: y = x Wᵀ + b (+ r), blocked for the caches; the heart of linear and conv2d.

            K                          outputs                    outputs
       ┌─────┬─────┬──             ┌─┬─┬─┬─┬─┬─┬──          ┌─────────────┬──
       │block│     │           ┌─  │p│ │ │ │ │ │            │ C           │
  rows │  A  │     │       DEPTH   │a│ │ │ │ │ │       rows │  · · · · ·  │
       │     │     │           │   │n│ │ │ │ │ │            │  ·tile· · · │
       ├─────┼─────┼──     K   └─  │e│ │ │ │ │ │            ├─────────────┼──
       │                           │l│ │ │ │ │ │            │             │
             x                          Wᵀ                         y

A job is a rectangle C of the result: a few tiles high, a few panels wide, kept in working memory of its thread. For
each block of DEPTH terms, the thread gathers its rows of x into A (`patches.gather`), which stays in the second-level
cache; then it takes panel after panel, DEPTH rows of which stay in the first-level cache while the register tile
(`microkernel`) runs down the rows of A. When all terms are in, one output pass adds bias and residual, or multiplies
value by GELU of gate, and writes y. Tiles are always computed in full; what lies beyond the edges of y is not written.

Panels hold float32 or bfloat16; in the second case x is rounded to bfloat16 as well, on its way into A, while sums, C
and y are float32. The code below is compiled for both and counts terms; where they lie in words of 32 bits is known to
`gather`, the tile and the packing.

Goto & van de Geijn 2008, "Anatomy of high-performance matrix multiplication".
"""
import numpy as np
from numba import prange, types

from . import threads
from .activations import gelu_of
from .arrays import NOTHING, flat, float32, shaped
from .bfloat16 import factors_per_word
from .compiling import floats_in, floats_out, halves_in, inlined, integers_out, kernels_for, size
from .memory import load, next_job, store
from .microkernel import PRODUCT, make_tile
from .packing import packed, packed_depth
from .patches import Geometry, gather, rows_of_a_matrix

TILE_ROWS, COLUMNS = PRODUCT.rows, PRODUCT.columns
DEPTH = 256                                              # words of a row of A; a panel's part is 32 KB with AVX-512
MAX_TILES, MAX_PANELS = 12, 20                           # size of a job: A takes 170 KB, C 430 KB
_JOBS_PER_THREAD = 4                                     # enough that the last job to finish does not matter much
_SMALL = 500_000                                         # multiply-adds that are not worth waking threads for

TAIL_ROWS = TILE_ROWS // 3                               # up to two of these tiles take rows that full ones leave over

full_tile = make_tile(PRODUCT)
tail_tile = make_tile(PRODUCT._replace(rows=TAIL_ROWS))


def linear(x, weight, bias=None, residual=None):
    """y = x Wᵀ + b (+ r)      x: (..., in)   weight: (out, in)   bias: (out,)   residual: (..., out)   → (..., out)"""
    x, weight = float32(x, "x"), packed(weight)
    outputs, depth = weight.shape
    rows = x.size // depth
    y = np.empty((*x.shape[:-1], outputs), np.float32)
    return product(x, rows_of_a_matrix(rows, x.shape[-1]), rows, weight, bias, residual, y)


def linear_geglu(x, weight, bias):
    """value · GELU(gate), where (value, gate) = x Wᵀ + b      x: (..., in)   weight: (2 C, in)   → (..., C)

    GEGLU (Shazeer 2020, arXiv:2002.05202): the first half of the outputs is the value, the second half the gate. A job
    computes both halves of its columns, so that neither is ever written to memory.
    """
    x, weight = float32(x, "x"), packed(weight)
    outputs, depth = weight.shape
    rows = x.size // depth
    y = np.empty((*x.shape[:-1], outputs // 2), np.float32)
    return product(x, rows_of_a_matrix(rows, x.shape[-1]), rows, weight, bias, None, y, gated=True)


def product(x, geometry, rows, weight, bias, residual, y, gated=False):
    """y = (patches of x) Wᵀ + b (+ r), written into y and returned; ValueError if shapes do not fit.

    x: contiguous   geometry: how rows are gathered from x   weight: Packed   bias: None, (O,) or (N, O)   y: (..., O)
    """
    outputs = weight.shape[0]
    depth = geometry.channels * geometry.kernel_height * geometry.kernel_width
    if depth != weight.depth or (gated and outputs % 2):
        raise ValueError(f"a weight of shape {weight.shape} does not fit an input of {geometry.channels} channels")
    if y.size == 0:
        return y
    bias, bias_per_image = checked_bias(bias, rows // (geometry.out_height * geometry.out_width), outputs)
    has_residual = residual is not None
    residual = shaped(residual, y.shape, "residual") if has_residual else NOTHING

    result_columns = y.shape[-1]
    small = rows * outputs * depth < _SMALL
    tiles, panels = _job_size(rows, result_columns, 1 if small else threads.get_threads(), MAX_PANELS // (1 + gated))
    block_rows = tiles * TILE_ROWS
    width = (panels + (panels + 1 if gated else 0)) * COLUMNS    # a gate that begins inside a panel touches one more
    threads.launch(multiply[weight.dtype], rows, outputs, result_columns, depth, block_rows, panels, width,
                   tuple(geometry), flat(x), weight.panels, bias, bias_per_image, has_residual, residual, flat(y),
                   parallel=not small, scratch=block_rows * (DEPTH + width))
    return y


def checked_bias(bias, images, outputs):
    """Flat array, and whether each image has its own, of a bias that is None, (outputs,) or (images, outputs)

    ValueError for another shape. None becomes zeros: adding them costs less than a second kind of output pass.
    """
    if bias is None:
        return np.zeros(outputs, np.float32), False
    if bias.ndim == 1:
        return shaped(bias, (outputs,), "bias"), False
    return shaped(bias, (images, outputs), "bias"), True


def _job_size(rows, columns, thread_count, max_panels):
    """(tiles, panels) of a job: large, but with some jobs for each thread.

    Rows that fit into one job are split last: all of a large weight is then read once, by whichever thread.
    """
    all_tiles, all_panels = -(-rows // TILE_ROWS), -(-columns // COLUMNS)
    row_parts, column_parts = -(-all_tiles // MAX_TILES), -(-all_panels // max_panels)
    wanted = _JOBS_PER_THREAD * thread_count if thread_count > 1 else 1
    if row_parts == 1:
        column_parts = max(column_parts, min(wanted, -(-all_panels // 2)))
    row_parts = max(row_parts, min(-(-wanted // column_parts), -(-all_tiles // 4)))
    return -(-all_tiles // row_parts), -(-all_panels // column_parts)


def _signature(panels):
    return (size, integers_out, size, size, size, size, size, size, size, types.UniTuple(size, len(Geometry._fields)),
            floats_in, panels, floats_in, types.boolean, types.boolean, floats_in, floats_out, floats_out, size)


@kernels_for(float32=_signature(floats_in), bfloat16=_signature(halves_in))
def multiply(thread_count, counter, rows, outputs, result_columns, depth, block_rows, block_panels, width, geometry,
             x, panels, bias, bias_per_image, has_residual, residual, y, memory, share):
    """Jobs go down the rows first: threads that run at the same time read the same panels."""
    row_blocks = (rows + block_rows - 1) // block_rows
    block_columns = block_panels * COLUMNS
    jobs = row_blocks * ((result_columns + block_columns - 1) // block_columns)
    for thread in prange(thread_count):
        job = next_job(counter)
        while job < jobs:
            first = job % row_blocks * block_rows
            column = job // row_blocks * block_columns
            _block(first, min(first + block_rows, rows), column, min(column + block_columns, result_columns), outputs,
                   result_columns, depth, geometry, x, panels, bias, bias_per_image, has_residual, residual, y, memory,
                   thread * share, thread * share + block_rows * DEPTH, width)
            job = next_job(counter)


@inlined
def _block(first, last, column, end, outputs, result_columns, depth, geometry, x, panels, bias, bias_per_image,
           has_residual, residual, y, memory, a, c, width):
    """Rows first … last − 1, columns column … end − 1 of y. A begins at memory[a], C at memory[c] with rows of `width`.

    With a gate (fewer result columns than outputs) C holds the panels of the values, then those of the gates.
    """
    gated = result_columns < outputs
    value_panel, value_panels = column // COLUMNS, (end - column + COLUMNS - 1) // COLUMNS
    gate_panel, all_panels = 0, value_panels
    if gated:
        gate_panel = (result_columns + column) // COLUMNS
        all_panels += (result_columns + end - 1) // COLUMNS - gate_panel + 1
    whole = (last - first + TILE_ROWS - 2 * TAIL_ROWS - 1) // TILE_ROWS * TILE_ROWS      # a larger rest fills a tile
    block_terms = DEPTH * factors_per_word(panels)
    for k0 in range(0, depth, block_terms):
        terms = min(block_terms, depth - k0)
        gather(x, geometry, first, last, k0, k0 + terms, memory, a, DEPTH, panels)
        for p in range(all_panels):
            panel = value_panel + p if p < value_panels else gate_panel + p - value_panels
            b = (panel * packed_depth(depth, panels) + k0) * COLUMNS
            target = c + p * COLUMNS
            for row in range(0, whole, TILE_ROWS):
                full_tile(memory, a + row * DEPTH, DEPTH, 1, panels, b,
                          memory, target + row * width, width, terms, k0 > 0)
            for row in range(whole, last - first, TAIL_ROWS):
                tail_tile(memory, a + row * DEPTH, DEPTH, 1, panels, b,
                          memory, target + row * width, width, terms, k0 > 0)

    image_rows = geometry[-2] * geometry[-1]             # out_height · out_width
    for m in range(first, last):
        source = c + (m - first) * width
        target = m * result_columns + column
        shift = column + (m // image_rows * outputs if bias_per_image else 0)
        if gated:
            gate = source + value_panels * COLUMNS + (result_columns + column) % COLUMNS
            for i in range(end - column):
                value = load(memory, source + i) + load(bias, shift + i)
                gate_input = load(memory, gate + i) + load(bias, shift + result_columns + i)
                store(y, target + i, value * gelu_of(gate_input))
        elif has_residual:
            for i in range(end - column):
                store(y, target + i, load(memory, source + i) + load(bias, shift + i) + load(residual, target + i))
        else:
            for i in range(end - column):
                store(y, target + i, load(memory, source + i) + load(bias, shift + i))
