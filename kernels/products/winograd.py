"""Convolution 3×3 of stride 1 by Winograd's F(4×4, 3×3), blocked for the caches; the algebra is in winograd_transforms.

A group of tiles at a time, few enough that V stays in the last-level cache:

    1  every tile:               gather d from the image, V[ξ][block of channels][tile] = Bᵀ d B
    2  every panel of outputs    for each block of channels:  U = G g Gᵀ of the panel          (second-level cache)
       × some of the tiles:                                   M[ξ] += V[ξ] U[ξ] for the 36 ξ   (register tile)
                                 Y = Aᵀ M A + bias + residual, written to the image

    V[ξ]  channels →  ┌────────┬────────┬───      U[ξ]  ┌───────┐ DEPTH      M[ξ]  ┌───────┐
                      │ DEPTH  │        │               │ panel │        →         │ panel │ tiles
              tiles ↓ │        │        │               └───────┘                  └───────┘

Weights are stored once, as for every other product: U, four times their size, is made where it is used and never leaves
the cache, which costs some percent of the time and saves three quarters of the memory. V does come from afar: while the
register tile works on one ξ, it fetches the rows that the next ξ will want. From ξ to ξ + 1 every matrix is a little
longer than it need be: a power of two apart, all 36 would fight for the same lines of the cache.

With weights in bfloat16, and a processor that multiplies pairs of them, V and U are rounded to pairs as well and DEPTH
counts pairs: half the traffic, twice the rate. Rounding after the transform costs 5 times the error of rounding the
factors of a direct convolution, about a hundredth of the largest output. Elsewhere the weights are widened and only they
are rounded.

Patches are gathered with zeros around the image, and from an image that is enlarged by nearest neighbours while it is
read; tiles that hang over the edge are computed in full and what lies beyond is not written.
"""
from typing import NamedTuple

import numpy as np

from .. import threads
from ..arrays import CACHE_LINE, flat
from ..codegen import streaming
from ..codegen.bfloat16 import HAS_DOT, factors_per_word
from ..codegen.compiling import floats_in, floats_out, halves_in, inlined, kernel, kernels_for, size, sizes_of
from ..codegen.memory import load, next_job, store
from . import amx_tile, epilogue, job_sizes
from .matmul import TAIL_ROWS, TILE_ROWS
from .microkernel import LANES, PRODUCT, make_tile
from .packing import COLUMNS
from .patches import Geometry
from .winograd_transforms import KERNEL, OUTPUTS, PATCH, input_transform, make_transform, output_transform, weight_transform

POINTS = PATCH * PATCH                                   # places ξ, 36
DEPTH = 64                                               # words of channels in a block: U is 295 KB with AVX-512
V_FLOATS = 4 << 20                                       # of a group of tiles, 16 MB
_JOBS_PER_THREAD = 4

# Scratch of a thread in the first phase: a patch, DEPTH words of channels; in the second: U, M, and the outputs of one tile.
PATCH_FLOATS = POINTS * 2 * DEPTH
U_STEP = (DEPTH + 1) * COLUMNS                           # from one ξ to the next
U_FLOATS = POINTS * U_STEP
Y_FLOATS = OUTPUTS * OUTPUTS * COLUMNS

full_tile = make_tile(PRODUCT, prefetching=True)         # DEPTH lines are more than the next rows take
tail_tile = make_tile(PRODUCT._replace(rows=TAIL_ROWS), prefetching=True)
transform_input = make_transform(input_transform, PATCH, LANES)
transform_weight = make_transform(weight_transform, KERNEL, LANES)
widen_lower, widen_upper = (make_transform(weight_transform, KERNEL, LANES, half) for half in (0, 1))
pair_inputs = make_transform(input_transform, PATCH, LANES, pairs=True)
pair_lower, pair_upper = (make_transform(weight_transform, KERNEL, LANES, half, pairs=True) for half in (0, 1))
transform_output = make_transform(output_transform, PATCH, LANES)


def suits(geometry, weight):
    """Whether Winograd's way is open and pays: 3×3, stride 1, whole vectors of channels, more than a few outputs.

    It doesn't where tile registers multiply bfloat16: they are eight times as fast, its transforms aren't.
    """
    if amx_tile.multiplies(weight.dtype):
        return False
    return ((geometry.kernel_height, geometry.kernel_width, geometry.stride) == (3, 3, 1)
            and geometry.channels % (LANES * terms_per_word(weight)) == 0 and weight.shape[0] >= LANES)


def terms_per_word(weight):
    """How many channels stand in a word of V and U: two where the processor multiplies pairs of bfloat16."""
    return factors_per_word.py_func(weight.panels)


def convolve(x, geometry, weight, bias, residual, y):
    """y = conv(x) + bias (+ residual), written into y and returned.

    x: contiguous (N, H, W, I)   geometry: of the image as the kernel sees it, which is x enlarged if x is smaller
    weight: Packed   bias, residual: as `epilogue.checked` gives them   y: (N, H_out, W_out, O)
    """
    images, height, width, channels = x.shape
    outputs = weight.shape[0]
    rows, columns = -(-geometry.out_height // OUTPUTS), -(-geometry.out_width // OUTPUTS)
    tiles = images * rows * columns
    terms = terms_per_word(weight)
    blocks = -(-channels // (DEPTH * terms))
    parts = -(-tiles * POINTS * blocks * DEPTH // V_FLOATS)
    group = _whole_tiles(-(-tiles // parts))
    job_rows = _job_rows(group, outputs, job_sizes.of(weight.dtype).winograd_tiles * TILE_ROWS)
    v_step, m_step = blocks * DEPTH * group + CACHE_LINE, (job_rows + 1) * COLUMNS         # from ξ to ξ + 1
    v = threads.working_memory("winograd", POINTS * v_step)
    for first in range(0, tiles, group):
        count = min(group, tiles - first)
        sizes = tuple(Sizes(first, count, group, rows, columns, height, width, outputs, job_rows, v_step, m_step,
                            int(streaming.suits(y, outputs))))
        threads.launch(transform_patches, sizes, tuple(geometry), terms, flat(x), v, scratch=PATCH_FLOATS)
        threads.launch(multiply_points[weight.dtype], sizes, tuple(geometry), v, weight.panels, bias, residual,
                       flat(y), scratch=U_FLOATS + POINTS * m_step + Y_FLOATS)
    return y


def _whole_tiles(rows):
    """The next multiple of a register tile's rows."""
    return -(-rows // TILE_ROWS) * TILE_ROWS


def _job_rows(group, outputs, most):
    """Tiles of a job: as many as fit, but with some jobs for each thread."""
    panels = -(-outputs // COLUMNS)
    wanted = -(-_JOBS_PER_THREAD * threads.get_threads() // panels)
    parts = max(-(-group // most), min(wanted, group // (2 * TILE_ROWS)), 1)
    return _whole_tiles(-(-group // parts))


class Sizes(NamedTuple):
    """Of a group of tiles, and of what is computed for it."""
    first: int                                           # tile of the group, of all tiles of all images
    count: int                                           # tiles that it has
    capacity: int                                        # tiles that there is room for in V
    rows: int                                            # of tiles in an image
    columns: int
    height: int                                          # of x, smaller than the geometry's where x is enlarged
    width: int
    outputs: int
    job_rows: int                                        # tiles of a job
    v_step: int                                          # from ξ to ξ + 1 in V
    m_step: int                                          # and in M
    streams: int = 0                                     # whether y is written past the caches, see streaming.py


@kernel(sizes_of(Sizes), sizes_of(Geometry), size, floats_in, floats_out, floats_out, size)
def transform_patches(thread, counter, sizes, geometry, terms, x, v, memory, share):
    """V of the group's tiles. A job is a tile."""
    sizes, geometry = Sizes(*sizes), Geometry(*geometry)
    channels, width = geometry.channels, sizes.width
    tile = next_job(counter)
    while tile < sizes.count:
        image, place = divmod(sizes.first + tile, sizes.rows * sizes.columns)
        row, column = divmod(place, sizes.columns)
        row, column = row * OUTPUTS - geometry.top, column * OUTPUTS - geometry.left      # of the patch
        inside = (row >= 0 and column >= 0 and row + PATCH <= sizes.height and column + PATCH <= width
                  and sizes.height == geometry.height and width == geometry.width)
        for c in range(0, channels, DEPTH * terms):
            depth = min(DEPTH * terms, channels - c)
            target = c // terms * sizes.capacity + tile * DEPTH
            if inside:
                source = ((image * sizes.height + row) * width + column) * channels + c
                _transform_inputs(x, source, width * channels, channels, depth, terms, v, target, sizes.v_step)
            else:
                patch = thread * share
                _gather(x, image, row, column, sizes, geometry, c, depth, memory, patch)
                _transform_inputs(memory, patch, PATCH * 2 * DEPTH, 2 * DEPTH, depth, terms, v, target, sizes.v_step)
        tile = next_job(counter)


@inlined
def _transform_inputs(source, start, row, column, depth, terms, v, target, v_step):
    """v[target:] = words of Bᵀ d B. A pair is made of channels c and c + LANES, which needs no shuffling of lanes."""
    if terms == 1:
        for c in range(0, depth, LANES):
            transform_input(source, start + c, row, column, v, target + c, PATCH * v_step, v_step)
    else:
        for c in range(0, depth, 2 * LANES):
            pair_inputs(source, start + c, row, column, v, target + c // 2, PATCH * v_step, v_step, start + c + LANES)


@inlined
def _gather(x, image, row, column, sizes, geometry, channel, depth, memory, patch):
    """memory[patch:] = the 6×6 patch at (row, column) of the enlarged image, `depth` channels, zeros outside"""
    for i in range(PATCH):
        for j in range(PATCH):
            target = patch + (i * PATCH + j) * 2 * DEPTH
            if 0 <= row + i and row + i < geometry.height and 0 <= column + j and column + j < geometry.width:
                from_row = (row + i) * sizes.height // geometry.height
                from_column = (column + j) * sizes.width // geometry.width
                source = ((image * sizes.height + from_row) * sizes.width + from_column) * geometry.channels + channel
                for c in range(depth):
                    store(memory, target + c, load(x, source + c))
            else:
                for c in range(depth):
                    store(memory, target + c, 0)


def _signature(panels):
    return sizes_of(Sizes), sizes_of(Geometry), floats_in, panels, floats_in, floats_in, floats_out, floats_out, size


@kernels_for(float32=_signature(floats_in), **({} if amx_tile.HAS_BFLOAT16 else {"bfloat16": _signature(halves_in)}))
def multiply_points(thread, counter, sizes, geometry, v, panels, bias, residual, y, memory, share):
    """Y of the group. A job is a panel and some tiles; those of a panel follow each other: its weights are read once."""
    sizes, geometry = Sizes(*sizes), Geometry(*geometry)
    channels = geometry.channels
    parts = (sizes.count + sizes.job_rows - 1) // sizes.job_rows
    jobs = parts * ((sizes.outputs + COLUMNS - 1) // COLUMNS)
    u = thread * share
    m, out = u + U_FLOATS, u + U_FLOATS + POINTS * sizes.m_step
    job = next_job(counter)
    while job < jobs:
        panel, start = job // parts, job % parts * sizes.job_rows
        rows = min(sizes.job_rows, sizes.count - start)
        for c in range(0, channels, DEPTH * factors_per_word(panels)):
            _multiply_block(c, channels, panels, panel * KERNEL * KERNEL * channels * COLUMNS,
                            v, c // factors_per_word(panels) * sizes.capacity + start * DEPTH, sizes.v_step, rows,
                            memory, u, m, sizes.m_step)
        for row in range(rows):
            for lane in range(0, COLUMNS, LANES):
                transform_output(memory, m + row * COLUMNS + lane, PATCH * sizes.m_step, sizes.m_step,
                                 memory, out + lane, OUTPUTS * COLUMNS, COLUMNS)
            _write_tile(memory, out, sizes.first + start + row, panel * COLUMNS, sizes, geometry, bias, residual, y)
        job = next_job(counter)


@inlined
def _transform_weights(c, depth, channels, panels, panel, memory, u):
    """memory[u:] = words of G g Gᵀ for `depth` channels from c on, which pair as in `_transform_inputs`"""
    row, tap = panel + c * COLUMNS, channels * COLUMNS   # the first channel's weights; from a tap to the next
    for lane in range(0, COLUMNS, LANES):
        if panels.itemsize == 4:
            for k in range(depth):
                transform_weight(panels, row + k * COLUMNS + lane, KERNEL * tap, tap,
                                 memory, u + k * COLUMNS + lane, PATCH * U_STEP, U_STEP)
        elif HAS_DOT:                                    # a row of panels has words of channels k, k + 1
            for k in range(0, depth, 2 * LANES):
                for word in range(0, LANES, 2):
                    source = (row + (k + word) * COLUMNS) // 2 + lane
                    other, target = source + LANES * COLUMNS // 2, u + (k // 2 + word) * COLUMNS + lane
                    pair_lower(panels, source, KERNEL * tap // 2, tap // 2,
                               memory, target, PATCH * U_STEP, U_STEP, other)
                    pair_upper(panels, source, KERNEL * tap // 2, tap // 2,
                               memory, target + COLUMNS, PATCH * U_STEP, U_STEP, other)
        else:
            for k in range(0, depth, 2):
                word = (row + k * COLUMNS) // 2 + lane
                widen_lower(panels, word, KERNEL * tap // 2, tap // 2,
                            memory, u + k * COLUMNS + lane, PATCH * U_STEP, U_STEP)
                widen_upper(panels, word, KERNEL * tap // 2, tap // 2,
                            memory, u + (k + 1) * COLUMNS + lane, PATCH * U_STEP, U_STEP)


@inlined
def _multiply_block(c, channels, panels, panel, v, v_start, v_step, rows, memory, u, m, m_step):
    """U of a block of channels from c on, then M (+)= V U for the rows of V that begin at v[v_start]"""
    depth = min(DEPTH * factors_per_word(panels), channels - c)
    _transform_weights(c, depth, channels, panels, panel, memory, u)
    whole = (rows + TILE_ROWS - 2 * TAIL_ROWS - 1) // TILE_ROWS * TILE_ROWS                # a larger rest fills a tile
    for point in range(POINTS):
        a, b, target = v_start + point * v_step, u + point * U_STEP, m + point * m_step
        if factors_per_word(panels) == 2:
            _multiply_rows(v, a, memory.view(np.uint16), 2 * b, memory, target, whole, rows, depth, c > 0, v_step)
        else:
            _multiply_rows(v, a, memory, b, memory, target, whole, rows, depth, c > 0, v_step)


@inlined
def _multiply_rows(v, a, factors, b, memory, target, whole, rows, depth, further, v_step):
    """The register tile down the rows of V[ξ], with U[ξ] at factors[b], while rows of the next ξ are fetched"""
    for row in range(0, whole, TILE_ROWS):
        full_tile(v, a + row * DEPTH, DEPTH, 1, factors, b,
                  memory, target + row * COLUMNS, COLUMNS, depth, further, a + row * DEPTH + v_step)
    for row in range(whole, rows, TAIL_ROWS):
        tail_tile(v, a + row * DEPTH, DEPTH, 1, factors, b,
                  memory, target + row * COLUMNS, COLUMNS, depth, further, a + row * DEPTH + v_step)


@inlined
def _write_tile(memory, out, tile, output, sizes, geometry, bias, residual, y):
    """The part of a 4×4 tile that lies in the image, for one panel of outputs, the first of which is `output`."""
    height, width = geometry.out_height, geometry.out_width
    image, place = divmod(tile, sizes.rows * sizes.columns)
    row, column = place // sizes.columns * OUTPUTS, place % sizes.columns * OUTPUTS
    lanes = min(COLUMNS, sizes.outputs - output)
    shift = epilogue.bias_of(image, sizes.outputs, bias) + output
    for i in range(min(OUTPUTS, height - row)):
        for j in range(min(OUTPUTS, width - column)):
            target = ((image * height + row + i) * width + column + j) * sizes.outputs + output
            epilogue.write(memory, out + (i * OUTPUTS + j) * COLUMNS, lanes, bias, shift, residual, sizes.streams, y, target)
