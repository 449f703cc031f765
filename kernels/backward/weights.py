"""The gradient of a product's weight: for each output pixel, g by the patch of x that it saw, summed over all pixels.

    dW[o, i, u, v] = Σ over n, r, q of g[n, r, q, o] · x[n, s·r + u − top, s·q + v − left, i]

For one tap (u, v) that is a matrix product whose sum runs over pixels. A job is a block of inputs by a block of outputs,
all taps of it, C, which stays in the second-level cache while the job goes through the images, R rows of Q pixels at a time:

    g, R × Q pixels        x, for each v and each p < s: rows s · i + p − top, of them pixels s · q + v − left, Q as well: what
                           tap (u, v) sees of row r is row r + ⌊u / s⌋ of p = u mod s

so that pixel k of g meets pixel k + Q ⌊u / s⌋ of a copy of x, for all k in one run of the register tile: kw copies serve all
taps, whole patches are never written, and zeros stand only where the padding is. The tile's rows are channels of one, its
columns panels of the other: of the two ways the one that computes less beyond the edges is taken, a convolution to 3 outputs
would waste nine tenths of a panel. Few jobs share the images, and their sums are added (`partial_sums`).

Kernels of 3×3 and many channels go Winograd's way (`winograd_weights`), those of few channels another (`direct_weights`), and
matrices to tile registers where there are any (`split_weights`).
"""
import math
from typing import NamedTuple

import numpy as np

from .. import threads
from ..arrays import flat, float32
from ..codegen.compiling import floats_in, floats_out, inlined, kernel, size, sizes_of
from ..codegen.memory import load, next_job, store
from ..products.matmul import TAIL_ROWS, TILE_ROWS, full_tile, tail_tile
from ..products.packing import COLUMNS
from . import split_weights, winograd_weights
from .direct_weights import direct_gradient
from .partial_sums import added, shared

RUN = 160                                                # pixels that the tile sums at once, or so
C_FLOATS = 96 << 10                                      # of a job, 384 KB
_SMALL = 500_000                                         # multiply-adds that are not worth waking threads for


def matrix_gradient(g, x):
    """gᵀ x      g: (rows, out)   x: (rows, in)   → (out, in)"""
    g, x = float32(g, "g"), float32(x, "x")
    if split_weights.suits(g, x):
        return split_weights.split_gradient(g, x)
    sums = _sums(g[None, None], x[None, None], (1, 1), 1, (0, 0), rows_of_x=False)
    return sums[0, 0] if len(sums) == 1 else sums.sum(axis=0)[0]


def convolution_gradient(g, x, kernel, stride, padding):
    """dW, see above      g: (N, H_out, W_out, O)   x: (N, H, W, I)   kernel: (kh, kw)   → (O, I, kh, kw)"""
    g, x = float32(g, "g"), float32(x, "x")
    outputs, inputs = g.shape[3], x.shape[3]
    if winograd_weights.suits(g, x, kernel, stride):
        return winograd_weights.winograd_gradient(g, x, padding)
    direct = direct_gradient(g, x, kernel, stride, padding)
    if direct is not None:
        return direct
    if kernel == (1, 1) and stride == 1 and padding == (0, 0, 0, 0):
        return matrix_gradient(g.reshape(-1, outputs), x.reshape(-1, inputs)).reshape(outputs, inputs, 1, 1)
    rows_of_x = _cost(inputs, outputs) <= _cost(outputs, inputs)
    sums = _sums(g, x, kernel, stride, (padding[0], padding[2]), rows_of_x)
    if rows_of_x:
        return added(sums, inputs, outputs).reshape(outputs, inputs, *kernel)
    return np.array(sums.sum(axis=0)[..., :inputs].transpose(1, 2, 0), order="C").reshape(outputs, inputs, *kernel)


def _cost(rows, columns):
    """Multiply-adds of a pixel, those beyond the edges included."""
    return -(-rows // TAIL_ROWS) * TAIL_ROWS * (-(-columns // COLUMNS)) * COLUMNS


class Sizes(NamedTuple):
    """Of images, blocks and jobs."""
    images: int
    height: int                                          # of x
    width: int
    inputs: int
    out_height: int
    out_width: int
    outputs: int
    kernel_height: int
    kernel_width: int
    stride: int
    top: int
    left: int
    rows_of_x: int                                       # whether the tile's rows are channels of x; else of g
    block_rows: int                                      # channels of a job that are rows of the tile,
    padded_rows: int                                     # with what whole tiles compute beyond them,
    block_columns: int                                   # and those that are its columns
    run_rows: int                                        # R
    run_columns: int                                     # Q
    parts: int                                           # jobs that share the images
    pitch: int                                           # of a row of sums


def _sums(g, x, kernel, stride, corner, rows_of_x):
    """→ (parts, taps, I, O) if the tile's rows are channels of x, else (parts, taps, O, I); the last one in whole panels

    In memory that the next call uses again. Of a matrix in memory of its own, without more panels than it has numbers, and in
    one part if threads can share out its rows.
    """
    images, out_height, out_width, outputs = g.shape
    _, height, width, inputs = x.shape
    kh, kw = kernel
    taps = kh * kw
    rows, columns = (inputs, outputs) if rows_of_x else (outputs, inputs)
    panels, most = -(-columns // COLUMNS), 4 if taps > 1 else 8
    block_columns = -(-panels // -(-panels // most)) * COLUMNS                   # as equal as possible, as
    block_rows = min(rows, max(TILE_ROWS, C_FLOATS // (taps * block_columns) // TILE_ROWS * TILE_ROWS))
    small, count = images * out_height * out_width * taps * rows * columns < _SMALL, threads.get_threads()
    row_blocks, column_blocks = -(-rows // block_rows), -(-columns // block_columns)
    is_matrix = taps == 1 and not rows_of_x
    if is_matrix and not small and rows >= 2 * TILE_ROWS * count:
        row_blocks = -(-row_blocks // count) * count
    block_rows = -(-rows // row_blocks)                  # these
    run_columns = min(out_width, RUN)
    run_rows = max(1, min(out_height, RUN // run_columns))
    runs = images * -(-out_height // run_rows) * -(-out_width // run_columns)
    parts = 1 if small else min(runs, shared(row_blocks * column_blocks, count))
    pitch = columns if is_matrix else panels * COLUMNS
    sizes = Sizes(images, height, width, inputs, out_height, out_width, outputs, kh, kw, stride, *corner, int(rows_of_x),
                  block_rows, _padded(block_rows), block_columns, run_rows, run_columns, parts, pitch)
    shape = parts, taps, rows, pitch
    length = math.prod(shape)
    sums = np.empty(length, np.float32) if is_matrix else threads.working_memory("sums of pixels", length)
    planes = min(stride, kh)
    copies = kw * planes * (run_rows + (kh - 1) // planes) * run_columns, run_rows * run_columns
    threads.launch(products, tuple(sizes), flat(g), flat(x), sums, parallel=not small,
                   scratch=taps * sizes.padded_rows * block_columns
                   + sum(pixels + TILE_ROWS for pixels in copies) * max(sizes.padded_rows, block_columns))
    return sums[:length].reshape(shape)


def _whole(rows):
    """How many of a block's rows go to full tiles; a larger rest fills one."""
    return (rows + TILE_ROWS - 2 * TAIL_ROWS - 1) // TILE_ROWS * TILE_ROWS


def _padded(rows):
    """Rows that tiles compute."""
    whole = _whole(rows)
    return whole + max(0, -(-(rows - whole) // TAIL_ROWS)) * TAIL_ROWS


@kernel(sizes_of(Sizes), floats_in, floats_in, floats_out, floats_out, size)
def products(thread, counter, sizes, g, x, sums, memory, share):
    """A job is a block of C for a part of all runs."""
    sizes = Sizes(*sizes)
    rows = sizes.inputs if sizes.rows_of_x else sizes.outputs
    columns = sizes.outputs if sizes.rows_of_x else sizes.inputs
    row_blocks = (rows + sizes.block_rows - 1) // sizes.block_rows
    column_blocks = (columns + sizes.block_columns - 1) // sizes.block_columns
    job = next_job(counter)
    while job < sizes.parts * row_blocks * column_blocks:
        part, block = divmod(job, row_blocks * column_blocks)
        row, column = divmod(block, column_blocks)
        row, column = row * sizes.block_rows, column * sizes.block_columns
        _block(part, row, min(sizes.block_rows, rows - row), rows, column, min(sizes.block_columns, columns - column),
               columns, sizes, g, x, sums, memory, thread * share)
        job = next_job(counter)


@inlined
def _block(part, row, row_count, rows, column, column_count, columns, sizes, g, x, sums, memory, c):
    """sums[part, :, row:, column:] of a block; memory[c:] holds C, the copies of x, the copy of g."""
    taps = sizes.kernel_height * sizes.kernel_width
    planes = min(sizes.stride, sizes.kernel_height)      # of a copy of x, rows by p
    further = (sizes.kernel_height - 1) // planes        # rows of one more than g has
    plane = (sizes.run_rows + further) * sizes.run_columns
    pixels, pixels_of_x = sizes.run_rows * sizes.run_columns, sizes.kernel_width * planes * plane
    x_copy = c + taps * sizes.padded_rows * sizes.block_columns
    g_copy = x_copy + (pixels_of_x + TILE_ROWS) * max(sizes.padded_rows, sizes.block_columns)
    channel, count, panel = (row, row_count, sizes.padded_rows) if sizes.rows_of_x else (column, column_count, COLUMNS)
    g_channel, g_count, g_panel = (column, column_count, COLUMNS) if sizes.rows_of_x else (row, row_count, sizes.padded_rows)
    for i in range(taps * sizes.padded_rows * sizes.block_columns):
        store(memory, c + i, 0)

    across = (sizes.out_width + sizes.run_columns - 1) // sizes.run_columns
    down = (sizes.out_height + sizes.run_rows - 1) // sizes.run_rows
    runs = sizes.images * down * across
    for run in range(runs * part // sizes.parts, runs * (part + 1) // sizes.parts):
        image, place = divmod(run, down * across)
        r, q = place // across * sizes.run_rows, place % across * sizes.run_columns
        height = min(sizes.run_rows, sizes.out_height - r)
        width = min(sizes.run_columns, sizes.out_width - q)
        for v in range(sizes.kernel_width):
            for p in range(planes):
                _copy(x, image, r * sizes.stride + p - sizes.top, q * sizes.stride + v - sizes.left, sizes.height, sizes.width,
                      sizes.stride, height + further, width, sizes.run_columns, channel, count, sizes.inputs, panel,
                      memory, x_copy + (v * planes + p) * plane * panel, pixels_of_x)
        _copy(g, image, r, q, sizes.out_height, sizes.out_width, 1, height, width, sizes.run_columns, g_channel, g_count,
              sizes.outputs, g_panel, memory, g_copy, pixels)
        depth = (height - 1) * sizes.run_columns + width
        for tap in range(taps):
            u, v = divmod(tap, sizes.kernel_width)
            start = (v * planes + u % planes) * plane + u // planes * sizes.run_columns
            for lane in range(0, column_count, COLUMNS):
                target = c + tap * sizes.padded_rows * sizes.block_columns + lane
                if sizes.rows_of_x:
                    _multiply(memory, x_copy + start * panel, panel, g_copy + lane * pixels, row_count, target,
                              sizes.block_columns, depth)
                else:
                    _multiply(memory, g_copy, g_panel, x_copy + lane * pixels_of_x + start * COLUMNS, row_count, target,
                              sizes.block_columns, depth)

    for tap in range(taps):
        for i in range(row_count):
            source = c + (tap * sizes.padded_rows + i) * sizes.block_columns
            target = ((part * taps + tap) * rows + row + i) * sizes.pitch + column
            for j in range(column_count):
                store(sums, target + j, load(memory, source + j))


@inlined
def _multiply(memory, a, step, b, count, target, stride, depth):
    """C += Aᵀ B for a panel of columns      A: `count` numbers of each pixel, pixels `step` apart   B: COLUMNS of each"""
    whole = (count + TILE_ROWS - 2 * TAIL_ROWS - 1) // TILE_ROWS * TILE_ROWS
    for i in range(0, whole, TILE_ROWS):
        full_tile(memory, a + i, 1, step, memory, b, memory, target + i * stride, stride, depth, True)
    for i in range(whole, count, TAIL_ROWS):
        tail_tile(memory, a + i, 1, step, memory, b, memory, target + i * stride, stride, depth, True)


@inlined
def _copy(source, image, row, column, height, width, stride, rows, columns, pitch, channel, count, channels, panel,
          memory, target, pixels):
    """`rows` rows of `columns` pixels of an image, each `stride` further, from (row, column) on; zeros outside it

    `count` channels from `channel` on; memory[target:] = panels of `panel` channels, `pixels` pixels from one to the next,
    `pitch` pixels from row to row
    """
    for i in range(rows):
        for j in range(columns):
            y, z = row + i * stride, column + j * stride
            inside = 0 <= y and y < height and 0 <= z and z < width
            at = ((image * height + y) * width + z) * channels + channel
            for first in range(0, count, panel):
                goal = target + first * pixels + (i * pitch + j) * panel
                lanes = min(panel, count - first)
                if inside and lanes == COLUMNS:          # known when this is compiled: whole vectors
                    for lane in range(COLUMNS):
                        store(memory, goal + lane, load(source, at + first + lane))
                elif inside:
                    for lane in range(lanes):
                        store(memory, goal + lane, load(source, at + first + lane))
                    for lane in range(lanes, panel):
                        store(memory, goal + lane, 0)
                else:
                    for lane in range(panel):
                        store(memory, goal + lane, 0)
