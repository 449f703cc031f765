"""The gradient of a weight that is multiplied as bfloat16, in tile registers: what weights.py sums, of rounded factors.

    dW[o, i, u, v] = Σ over n, r, q of g̃[n, r, q, o] · x̃[n, r + u − top, q + v − left, i]        ~ rounds to bfloat16

As there the sum runs over pixels, and a job keeps C, all taps of a block of inputs by a block of outputs, while it goes through
the images, R rows of g by P columns at a time: pixel k of g, in a copy with zeros between the rows, meets pixel k + u · P + v
of x, for all k of a run. Tiles (`amx_tile`) take words of two neighbouring k:

    A    x, turned round: a row of pixels for each input, where those of a tap begin `shift` pixels later
    B    g: a word of pixels 2 k and 2 k + 1 for each output, COLUMNS of them in a row

A row of A may begin in the middle of a word, and so one copy serves all taps.
"""
from typing import NamedTuple

import numpy as np

from .. import threads
from ..arrays import flat, float32
from ..codegen.compiling import floats_in, floats_out, inlined, kernels_for, size, sizes_of
from ..codegen.memory import load, next_job, store
from ..products import amx_tile
from ..products.microkernel import LANES, PRODUCT
from ..products.packing import COLUMNS
from ..products.transposition import make_pairs, make_transpose

RUN, RUN_OF_ONE_TAP = 256, 512                           # pixels that the tile sums at once, or so
C_FLOATS = 128 << 10                                     # of a job, 512 KB
GROUP = 2 * amx_tile.SIDE                                # pixels that fill a tile's words
_SMALL = 500_000                                         # multiply-adds that are not worth waking threads for
_ONE = np.float32(1)

full_tile, half_tile = (amx_tile.make_amx_tile(rows, "tdpbf16ps", halves=True) for rows in (amx_tile.ROWS, amx_tile.SIDE))
turn_pairs, pair_rows = make_transpose(LANES, narrow="in columns"), make_pairs(PRODUCT)


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
    top: int
    left: int
    block_inputs: int                                    # of a job
    block_outputs: int
    run_rows: int                                        # R
    run_columns: int                                     # of a row of g in a run
    pitch: int                                           # P
    pixels: int                                          # of a run, zeros included: whole groups
    pixels_of_x: int                                     # of a row of A
    parts: int                                           # jobs that share the images


def paired_gradient(g, x, kernel, padding):
    """dW, see above, of stride 1      g: (N, H_out, W_out, O)   x: (N, H, W, I)   → (O, I, kh, kw)"""
    g, x = float32(g, "g"), float32(x, "x")
    (images, out_height, out_width, outputs), (_, height, width, inputs) = g.shape, x.shape
    kh, kw = kernel
    taps, side = kh * kw, amx_tile.ROWS
    block_outputs = min(-(-outputs // COLUMNS), 4 if taps > 1 else 8) * COLUMNS
    block_inputs = min(-(-inputs // side) * side, max(side, C_FLOATS // (taps * block_outputs) // side * side))
    run = RUN_OF_ONE_TAP if taps == 1 else RUN
    run_columns = min(out_width, run)
    pitch = run_columns + kw - 1
    run_rows = max(1, min(out_height, run // pitch)) if run_columns == out_width else 1
    pixels = _whole(run_rows * pitch)
    pixels_of_x = _whole(pixels + (kh - 1) * pitch + kw - 1)
    pixels_of_x += GROUP if pixels_of_x // GROUP % 2 == 0 else 0         # an odd number of lines, which spread over the cache
    blocks = -(-inputs // block_inputs) * -(-outputs // block_outputs)
    runs = images * -(-out_height // run_rows) * -(-out_width // run_columns)
    small = images * out_height * out_width * taps * inputs * outputs < _SMALL
    parts = 1 if small else max(1, min(runs, -(-4 * threads.get_threads() // blocks)))
    sizes = Sizes(images, height, width, inputs, out_height, out_width, outputs, kh, kw, padding[0], padding[2], block_inputs,
                  block_outputs, run_rows, run_columns, pitch, pixels, pixels_of_x, parts)
    sums = np.empty((parts, taps, inputs, outputs), np.float32)
    threads.launch(sum_pairs["bfloat16"], tuple(sizes), flat(g), flat(x), flat(sums), parallel=not small,
                   scratch=taps * block_inputs * block_outputs + (block_inputs * pixels_of_x + block_outputs * pixels) // 2
                   + GROUP * COLUMNS)
    total = sums[0] if parts == 1 else sums.sum(axis=0)
    return np.ascontiguousarray(total.transpose(2, 1, 0)).reshape(outputs, inputs, kh, kw)


def _whole(pixels):
    """As many as fill groups"""
    return -(-pixels // GROUP) * GROUP


_SIGNATURE = sizes_of(Sizes), floats_in, floats_in, floats_out, floats_out, size


@kernels_for(**({"bfloat16": _SIGNATURE} if amx_tile.HAS_BFLOAT16 else {}))
def sum_pairs(thread, counter, sizes, g, x, sums, memory, share):
    """A job is a block of C for a part of all runs."""
    sizes = Sizes(*sizes)
    row_blocks = (sizes.inputs + sizes.block_inputs - 1) // sizes.block_inputs
    column_blocks = (sizes.outputs + sizes.block_outputs - 1) // sizes.block_outputs
    job = next_job(counter)
    while job < sizes.parts * row_blocks * column_blocks:
        part, block = divmod(job, row_blocks * column_blocks)
        amx_tile.configure()
        row, column = divmod(block, column_blocks)
        _block(part, row * sizes.block_inputs, column * sizes.block_outputs, sizes, g, x, sums, memory, thread * share)
        amx_tile.release()
        job = next_job(counter)


@inlined
def _block(part, row, column, sizes, g, x, sums, memory, c):
    """sums[part, :, row:, column:] of a block; memory[c:] holds C, A, B, and a group of pixels on its way there."""
    taps = sizes.kernel_height * sizes.kernel_width
    rows, columns = min(sizes.block_inputs, sizes.inputs - row), min(sizes.block_outputs, sizes.outputs - column)
    c_step = sizes.block_inputs * sizes.block_outputs    # from a tap to the next
    a = c + taps * c_step
    b = a + sizes.block_inputs * sizes.pixels_of_x // 2
    group = b + sizes.block_outputs * sizes.pixels // 2
    for i in range(taps * c_step):
        store(memory, c + i, 0)

    across = (sizes.out_width + sizes.run_columns - 1) // sizes.run_columns
    down = (sizes.out_height + sizes.run_rows - 1) // sizes.run_rows
    runs = sizes.images * down * across
    for run in range(runs * part // sizes.parts, runs * (part + 1) // sizes.parts):
        image, place = divmod(run, down * across)
        r, q = place // across * sizes.run_rows, place % across * sizes.run_columns
        height, width = min(sizes.run_rows, sizes.out_height - r), min(sizes.run_columns, sizes.out_width - q)
        seen = height + sizes.kernel_height - 1
        for k in range(0, sizes.pixels_of_x, GROUP):
            for channel in range(0, rows, LANES):
                _copy(x, image, r - sizes.top, q - sizes.left, sizes.height, sizes.width, sizes.inputs, seen, sizes.pitch,
                      sizes.pitch, k, row + channel, min(LANES, rows - channel), LANES, memory, group)
                place = a + (channel * sizes.pixels_of_x + k) // 2
                turn_pairs(memory, group, LANES, _ONE, memory, place, sizes.pixels_of_x // 2)
        for k in range(0, sizes.pixels, GROUP):
            for lane in range(0, columns, COLUMNS):
                _copy(g, image, r, q, sizes.out_height, sizes.out_width, sizes.outputs, height, width, sizes.pitch, k,
                      column + lane, min(COLUMNS, columns - lane), COLUMNS, memory, group)
                place = b + (lane * sizes.pixels + k * COLUMNS) // 2
                for pair in range(amx_tile.SIDE):
                    pair_rows(memory, group + 2 * pair * COLUMNS, memory, place + pair * COLUMNS)
        for i in range(0, rows, amx_tile.ROWS):
            for lane in range(0, columns, COLUMNS):
                for tap in range(taps):
                    shift = tap // sizes.kernel_width * sizes.pitch + tap % sizes.kernel_width
                    source = 2 * a + i * sizes.pixels_of_x + shift
                    target = c + tap * c_step + i * sizes.block_outputs + lane
                    _tile(rows - i, memory, source, sizes.pixels_of_x // 2, b + lane * sizes.pixels // 2, target,
                          sizes.block_outputs, sizes.pixels // 2)

    for tap in range(taps):
        for i in range(rows):
            source, target = c + tap * c_step + i * sizes.block_outputs, \
                ((part * taps + tap) * sizes.inputs + row + i) * sizes.outputs + column
            for j in range(columns):
                store(sums, target + j, load(memory, source + j))


@inlined
def _tile(rows, memory, a, a_stride, b, c, c_stride, words):
    """C += A B of the larger tile, or of the smaller one if it holds all rows that are left"""
    if rows > amx_tile.SIDE:
        full_tile(memory, a, a_stride, memory, b, memory, c, c_stride, words, memory, c, c_stride)
    else:
        half_tile(memory, a, a_stride, memory, b, memory, c, c_stride, words, memory, c, c_stride)


@inlined
def _copy(source, image, row, column, height, width, channels, rows, columns, pitch, k, channel, count, lanes, memory, target):
    """memory[target:] = GROUP pixels of an image from number k on, `lanes` channels of each, `count` of them from `channel` on

    Pixels are those of a window at (row, column) whose rows are `pitch` long; zeros outside the image, beyond `rows` rows of
    the window and `columns` pixels of each, and for lanes without a channel.
    """
    i, j = divmod(k, pitch)
    for pixel in range(GROUP):
        goal = target + pixel * lanes
        inside = i < rows and j < columns and 0 <= row + i and row + i < height and 0 <= column + j and column + j < width
        at = ((image * height + row + i) * width + column + j) * channels + channel
        if inside and count == lanes:                    # whole vectors
            for lane in range(lanes):
                store(memory, goal + lane, load(source, at + lane))
        else:
            for lane in range(lanes):
                store(memory, goal + lane, load(source, at + lane) if inside and lane < count else np.float32(0))
        j += 1
        if j == pitch:
            i, j = i + 1, 0
