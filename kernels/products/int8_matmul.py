"""Matrix product and convolution with int8 weights: rows of bytes (`int8_rows`) times panels of bytes (`int8_packing`).

    y[m, :] = Σ over taps and blocks of s_r s_o Σ q_r q_o        r = stride · m + u · pitch + v, the row that the tap sees

A job is a rectangle of the result: it takes panel after panel, down which go tiles of a few rows. A tile's sums for a block
of a tap are whole numbers in registers; scaled, they are added up as float32 in a place of their own, which stays in the
nearest cache, and when all are in, an output pass adds bias and residual, or multiplies value by GELU of gate.

Nothing is gathered: rows of A lie where they were rounded, by the job itself if no other reads them, for each tap some rows
further on. With more than one tap, results between two rows of pixels, and between two images, are computed in vain.

Where the processor has tile registers for bytes (`amx_tile`), they sum blocks that fill them: sums are exact either way.
"""
import functools
from typing import NamedTuple

from numba import types

from .. import threads
from ..arrays import flat
from ..codegen.compiling import floats_in, floats_out, inlined, kernel, size, sizes_of
from ..codegen.memory import next_job
from ..int8 import BLOCK
from . import amx_tile, blocking, epilogue, int8_rows, job_sizes
from .amx_tile import HAS_INT8 as HAS_AMX
from .blocking import COLUMNS, JOBS_PER_THREAD, TAIL_ROWS, TILE_ROWS
from .int8_packing import WORDS
from .int8_rows import Layout
from .int8_tile import HAS_DOT, make_int8_tile, make_scaled_row
from .microkernel import PRODUCT
from .patches import Geometry

HEIGHT = amx_tile.ROWS if HAS_AMX else TILE_ROWS         # rows of a tile
LEAST_TILES = 2                                          # of a job

full_tile = make_int8_tile(PRODUCT)
tail_tile = make_int8_tile(PRODUCT._replace(rows=TAIL_ROWS))
amx_full_tile, amx_half_tile = (amx_tile.make_amx_tile(rows, "tdpbusd") for rows in (amx_tile.ROWS, amx_tile.SIDE))
scaled_row = make_scaled_row(PRODUCT)


class Sizes(NamedTuple):
    """Of a product and of its jobs."""
    rows: int                                            # with those that are computed in vain
    outputs: int                                         # of the weight
    columns: int                                         # of y: half the outputs with a gate
    block_rows: int                                      # of a job
    block_columns: int
    rounding: int                                        # 1 if each job rounds its rows of x, which no other job reads
    width: int                                           # of C in working memory, where a gate stands beside its value


def product(x, geometry, images, weight, bias, residual, y, parallel):
    """y = (patches of x) Wᵀ + b (+ r), written into y and returned

    x: contiguous   geometry: of the image as the kernel sees it   weight: PackedInt8   bias, residual: as `epilogue.checked`
    gives them   y: (..., O), or (..., O / 2) if there is a gate
    """
    layout = int8_rows.layout_of(geometry, images)
    rows = ((images - 1) * layout.image // geometry.stride + (geometry.out_height - 1) * layout.pitch + geometry.out_width)
    outputs, columns = weight.shape[0], y.shape[-1]
    gated = columns < outputs
    count = threads.get_threads() if parallel else 1
    block_rows, panels = job_size(rows, columns, weight.depth // 4, layout.words, gated, count,
                                  job_sizes.of("int8").kilowords << 10)
    alone = layout.filled == rows and panels * COLUMNS >= columns            # one launch less is worth a tenth of the time
    width = (panels + (panels + 1 if gated else 0)) * COLUMNS    # a gate that begins inside a panel touches one more
    sizes = Sizes(rows, outputs, columns, block_rows, panels * COLUMNS, int(alone), width)
    q = threads.working_memory("int8", int8_rows.size_of(layout, geometry))
    if not alone:
        threads.launch(int8_rows.round_rows, tuple(layout), tuple(geometry), flat(x), q, parallel=parallel)
    threads.launch(multiply_int8, tuple(sizes), tuple(layout), tuple(geometry), flat(x), q, weight.panels, bias, residual,
                   flat(y), parallel=parallel, scratch=HEIGHT * COLUMNS + (block_rows + TILE_ROWS) * width)
    return y


@functools.lru_cache(1000)
def job_size(rows, columns, depth, row, gated, thread_count, cache):
    """(rows, panels) of a job: those for which least comes from beyond the second-level cache, with some jobs for each thread.

    depth: words of an output in a panel     row: words of a row of A     cache: words of a job's rows of A and C
    """
    tiles, panels, sides = -(-rows // HEIGHT), -(-columns // COLUMNS), 1 + gated
    wanted = JOBS_PER_THREAD * thread_count if thread_count > 1 else 1
    weight = panels * sides * COLUMNS * depth
    found = []
    for each in range(1, panels + 1):
        column_parts = -(-panels // each)
        most = max(LEAST_TILES, cache // ((row + each * sides * COLUMNS) * HEIGHT))
        row_parts = max(-(-tiles // most), min(-(-wanted // column_parts), -(-tiles // LEAST_TILES)))
        while row_parts * column_parts % thread_count and row_parts < tiles // LEAST_TILES:
            row_parts += 1                               # so that no thread has one job more than the others
        traffic = column_parts * rows * row + (row_parts if weight > cache // 2 else 1) * weight
        found.append((max(0, wanted - row_parts * column_parts), traffic, -(-tiles // row_parts) * HEIGHT, each))
    return min(found)[2:]


words_in = types.Array(types.int32, 1, "C", readonly=True)


@kernel(sizes_of(Sizes), sizes_of(Layout), sizes_of(Geometry), floats_in, floats_out, words_in, floats_in, floats_in,
        floats_out, floats_out, size, dtype="int8")
def multiply_int8(thread, counter, sizes, layout, geometry, x, q, panels, bias, residual, y, memory, share):
    sizes, layout, geometry = Sizes(*sizes), Layout(*layout), Geometry(*geometry)
    jobs = blocking.jobs_of(sizes)
    sums, c = thread * share, thread * share + HEIGHT * COLUMNS
    job = next_job(counter)
    while job < jobs:
        first, last, column, end = blocking.rectangle(job, sizes)
        if sizes.rounding == 1:
            int8_rows.round_run(first, last, layout, geometry, x, q)
        if HAS_AMX:
            amx_tile.configure()
        value_panel, value_panels, gate_panel, all_panels = blocking.panels_of(column, end, sizes)
        for p in range(all_panels):
            panel = value_panel + p if p < value_panels else gate_panel + p - value_panels
            _sums(first, last - first, panel, layout, geometry, q, panels, memory, sums, c + p * COLUMNS, sizes.width)
        _write(first, last, column, end, sizes, layout, geometry, memory, c, bias, residual, y)
        if HAS_AMX:
            amx_tile.release()
        job = next_job(counter)


@inlined
def _sums(m, rows, panel, layout, geometry, q, panels, memory, sums, c, width):
    """memory[c:] = results m … m + rows − 1 of a panel; memory[sums:] is needed meanwhile.

    Block after block of it goes down all these rows, for which it stays in the nearest cache.
    """
    channels, stride = geometry.channels, geometry.stride
    rows_of_tap = (channels + 3) // 4 + (channels + BLOCK - 1) // BLOCK + 1
    top = panel * geometry.kernel_height * geometry.kernel_width * rows_of_tap
    for u in range(geometry.kernel_height):
        for v in range(geometry.kernel_width):
            row, outputs = stride * m + u * layout.pitch + v, (top + rows_of_tap - 1) * COLUMNS
            for k0 in range(0, channels, BLOCK):
                words = (min(BLOCK, channels - k0) + 3) // 4
                a = row * layout.words + (k0 // 4 if HAS_DOT else k0)
                scales = layout.rows * (layout.words + k0 // BLOCK) + row
                b = (top + k0 // BLOCK * (WORDS + 1)) * COLUMNS
                further = u + v + k0 > 0
                if HAS_AMX and words % amx_tile.SIDE == 0:
                    for i in range(0, rows, HEIGHT):
                        _by_amx(min(HEIGHT, rows - i), words, further, q, a + i * stride * layout.words, stride * layout.words,
                                scales + i * stride, stride, panels, b, outputs, memory, sums, c + i * width, width)
                else:
                    _by_vectors(rows, words, further, q, a, stride * layout.words, scales, stride, panels, b, outputs,
                                memory, c, width)
            top += rows_of_tap


@inlined
def _by_vectors(rows, words, further, q, a, a_stride, scales, scale_stride, panels, b, outputs, memory, c, width):
    """memory[c:] = rows of A times a block of a panel, or has that added if `further`, by tiles in vector registers"""
    whole = blocking.rows_in_full_tiles(rows)
    for row in range(0, whole, TILE_ROWS):
        full_tile(q, a + row * a_stride, a_stride, scales + row * scale_stride, scale_stride, memory, c + row * width, width,
                  panels, b, outputs, words, further)
    for row in range(whole, rows, TAIL_ROWS):
        tail_tile(q, a + row * a_stride, a_stride, scales + row * scale_stride, scale_stride, memory, c + row * width, width,
                  panels, b, outputs, words, further)


@inlined
def _by_amx(rows, words, further, q, a, a_stride, scales, scale_stride, panels, b, outputs, memory, sums, c, width):
    """The same by tile registers: their sums begin with −128 Σ of the panel's bytes in each row, and pass through
    memory[sums:]."""
    if rows > amx_tile.SIDE:
        amx_full_tile(q, a, a_stride, panels, b + COLUMNS, memory, sums, COLUMNS, words, panels, b, 0)
    else:
        amx_half_tile(q, a, a_stride, panels, b + COLUMNS, memory, sums, COLUMNS, words, panels, b, 0)
    for i in range(rows):
        scaled_row(memory, sums + i * COLUMNS, q, scales + i * scale_stride, c + i * width, panels, outputs, further)


@inlined
def _write(first, last, column, end, sizes, layout, geometry, memory, c, bias, residual, y):
    """The output pass for results first … last − 1 of columns column … end − 1, those of them that are pixels of y"""
    value_panels = blocking.panels_of(column, end, sizes)[1]
    image, place = divmod(first, layout.image // geometry.stride)
    i, j = divmod(place, layout.pitch)
    for sums in range(c, c + (last - first) * sizes.width, sizes.width):
        if i < geometry.out_height and j < geometry.out_width:
            target = ((image * geometry.out_height + i) * geometry.out_width + j) * sizes.columns + column
            shift = epilogue.bias_of(image, sizes.outputs, bias) + column
            if sizes.columns < sizes.outputs:
                gates = sums + value_panels * COLUMNS + (sizes.columns + column) % COLUMNS
                epilogue.write_gated(memory, sums, gates, end - column, bias, shift, shift + sizes.columns, y, target)
            else:
                epilogue.write_vectors(memory, sums, end - column, bias, shift, residual, y, target)
        j += 1
        if j == layout.pitch:
            i, j = i + 1, 0
            if i * layout.pitch == layout.image // geometry.stride:
                image, i = image + 1, 0
