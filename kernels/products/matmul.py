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
`gather`, the tile and the packing. Where the processor has tile registers for bfloat16 (`amx_tile`), these take the terms
that fill them, and vectors the rest; most products of float32 are theirs there, too, in another way (`split_matmul`).

Goto & van de Geijn 2008, "Anatomy of high-performance matrix multiplication".
"""
from .. import threads
from ..arrays import empty, flat, float32
from ..codegen.bfloat16 import factors_per_word
from ..codegen.compiling import floats_in, floats_out, halves_in, inlined, kernels_for, size, sizes_of
from ..codegen.memory import next_job
from . import amx_tile, blocking, epilogue, int8_matmul, job_sizes, split_matmul, windows
from .amx_tile import HAS_BFLOAT16 as HAS_AMX
from .blocking import AMX_DEPTH, AMX_STRIDE, COLUMNS, DEPTH, SMALL, TAIL_ROWS, TILE_ROWS, Sizes, job_size
from .microkernel import PRODUCT, make_tile
from .packing import packed, packed_depth
from .patches import Geometry, gather, rows_of_a_matrix

full_tile = make_tile(PRODUCT)
tail_tile = make_tile(PRODUCT._replace(rows=TAIL_ROWS))


def linear(x, weight, bias=None, residual=None):
    """y = x Wᵀ + b (+ r)      x: (..., in)   weight: (out, in)   bias: (out,)   residual: (..., out)   → (..., out)"""
    x, weight = float32(x, "x"), packed(weight)
    outputs, depth = weight.shape
    rows = x.size // depth
    y = empty((*x.shape[:-1], outputs))
    return product(x, rows_of_a_matrix(rows, x.shape[-1]), rows, weight, bias, residual, y)


def linear_geglu(x, weight, bias):
    """value · GELU(gate), where (value, gate) = x Wᵀ + b      x: (..., in)   weight: (2 C, in)   → (..., C)

    GEGLU (Shazeer 2020, arXiv:2002.05202): the first half of the outputs is the value, the second half the gate. A job
    computes both halves of its columns, so that neither is ever written to memory.
    """
    x, weight = float32(x, "x"), packed(weight)
    outputs, depth = weight.shape
    rows = x.size // depth
    y = empty((*x.shape[:-1], outputs // 2))
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
    bias, residual = epilogue.checked(bias, residual, rows // geometry.out_pixels, outputs, y.shape)
    columns = y.shape[-1]
    small = rows * outputs * depth < SMALL
    if weight.dtype == "int8":
        return int8_matmul.product(x, geometry, rows // geometry.out_pixels, weight, bias, residual, y, parallel=not small)
    split = split_matmul.suits(x, geometry, weight, rows)
    most, tile_rows = job_sizes.of(weight.dtype), amx_tile.ROWS if split or amx_tile.multiplies(weight.dtype) else TILE_ROWS
    block_rows, panels = job_size(rows, columns, 1 if small else threads.get_threads(), most.panels // (1 + gated), tile_rows,
                                  most.tiles)
    width = (panels + (panels + 1 if gated else 0)) * COLUMNS    # a gate that begins inside a panel touches one more
    sizes = Sizes(rows, outputs, columns, depth, block_rows, panels * COLUMNS, width)
    kernel, scratch = multiply[weight.dtype], block_rows * max(DEPTH, AMX_STRIDE) + (block_rows + TILE_ROWS) * width
    if split:
        kernel, scratch = split_matmul.multiply_split[weight.dtype], split_matmul.scratch(block_rows, width)
    if window := windows.of(geometry, weight):           # tiles of others overhang C
        sizes = sizes._replace(block_rows=window.rows * window.columns, window=window.words, window_columns=window.columns)
        scratch = window.words + window.sums * width
    threads.launch(kernel, tuple(sizes), tuple(geometry), flat(x), weight.panels, bias, residual, flat(y),
                   parallel=not small, scratch=scratch)
    return y


def _signature(panels):
    return sizes_of(Sizes), sizes_of(Geometry), floats_in, panels, floats_in, floats_in, floats_out, floats_out, size


@kernels_for(float32=_signature(floats_in), bfloat16=_signature(halves_in))
def multiply(thread, counter, sizes, geometry, x, panels, bias, residual, y, memory, share):
    sizes, geometry = Sizes(*sizes), Geometry(*geometry)
    jobs = blocking.jobs_of(sizes)
    job = next_job(counter)
    while job < jobs:
        first, last, column, end = blocking.rectangle(job, sizes)
        if HAS_AMX and panels.itemsize == 2:
            amx_tile.configure()
        a = thread * share
        _block(first, last, column, end, sizes, geometry, x, panels, bias, residual, y, memory, a,
               a + (sizes.window if sizes.window > 0 else sizes.block_rows * _row(panels)[1]))
        if HAS_AMX and panels.itemsize == 2:
            amx_tile.release()
        job = next_job(counter)


@inlined
def _row(panels):
    """Words of a row of A that are multiplied at once, and from a row to the next."""
    return (AMX_DEPTH, AMX_STRIDE) if HAS_AMX and panels.itemsize == 2 else (DEPTH, DEPTH)


@inlined
def _block(first, last, column, end, sizes, geometry, x, panels, bias, residual, y, memory, a, c):
    """Rows first … last − 1, columns column … end − 1 of y. A begins at memory[a], C at memory[c].

    With a gate (fewer columns than outputs) C holds the panels of the values, then those of the gates.
    """
    out_pixels = geometry.out_height * geometry.out_width
    if HAS_AMX and panels.itemsize == 2 and sizes.window > 0:
        windows.multiply(first, column, end, sizes, geometry, x, panels, memory, a, c)
        across = windows.across(sizes.window_columns, geometry.kernel_width)
        for i in range(sizes.block_rows // sizes.window_columns):
            pixel = windows.pixel(first, i * sizes.window_columns, sizes, geometry)
            epilogue.write_rectangle(memory, c + i * across * sizes.width, pixel, pixel + sizes.window_columns, column, end,
                                     sizes, out_pixels, bias, residual, y)
    else:
        _multiply_gathered(first, last, column, end, sizes, geometry, x, panels, memory, a, c)
        epilogue.write_rectangle(memory, c, first, last, column, end, sizes, out_pixels, bias, residual, y)


@inlined
def _multiply_gathered(first, last, column, end, sizes, geometry, x, panels, memory, a, c):
    """memory[c:] = the sums of a job, block after block of terms"""
    width = sizes.width
    value_panel, value_panels, gate_panel, all_panels = blocking.panels_of(column, end, sizes)
    depth, stride = _row(panels)
    block_terms = depth * factors_per_word(panels)
    for k0 in range(0, sizes.depth, block_terms):
        terms = min(block_terms, sizes.depth - k0)
        gather(x, geometry, first, last, k0, k0 + terms, memory, a, stride, panels)
        for p in range(all_panels):
            panel = value_panel + p if p < value_panels else gate_panel + p - value_panels
            b = (panel * packed_depth(sizes.depth, panels) + k0) * COLUMNS
            if HAS_AMX and panels.itemsize == 2:
                done = terms // (2 * amx_tile.SIDE) * amx_tile.SIDE              # words that fill tiles
                if done > 0:
                    amx_tile.multiply_rows(last - first, memory, a, stride, panels, b // 2, memory, c + p * COLUMNS, width,
                                           done, k0 > 0)
                if 2 * done < terms:
                    _by_vectors(last - first, terms - 2 * done, k0 + done > 0, memory, a + done, stride, panels,
                                b + 2 * done * COLUMNS, c + p * COLUMNS, width)
            else:
                _by_vectors(last - first, terms, k0 > 0, memory, a, stride, panels, b, c + p * COLUMNS, width)


@inlined
def _by_vectors(rows, terms, further, memory, a, stride, panels, b, c, width):
    """memory[c:] = A times a panel, or has that added if `further`, by tiles in vector registers"""
    whole = blocking.rows_in_full_tiles(rows)
    for row in range(0, whole, TILE_ROWS):
        full_tile(memory, a + row * stride, stride, 1, panels, b, memory, c + row * width, width, terms, further)
    for row in range(whole, rows, TAIL_ROWS):
        tail_tile(memory, a + row * stride, stride, 1, panels, b, memory, c + row * width, width, terms, further)
