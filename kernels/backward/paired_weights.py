"""The gradient of a weight that is multiplied as bfloat16, in tile registers: what weights.py sums, of rounded factors.

    dW[o, i, u, v] = Σ over n, r, q of g̃[n, r, q, o] · x̃[n, r + u − top, q + v − left, i]        ~ rounds to bfloat16

As there the sum runs over pixels. Multiplying is cheap here and arranging is not, so a job takes a share of all pixels, for as
large a block of dW as the second-level cache holds, and arranges each number once for all taps. It goes band by band: R rows
of g by P pixels, with the zeros that make pixel k of g meet pixel k + u · P + v of x. Bands of small images follow each other
in one run, with zeros between them in g as well, kh − 1 rows of P, so that one sum goes through many images. Tiles
(`amx_tile`) take words of two neighbouring pixels:

    A    x, turned round: a row of pixels for each input, where those of a tap begin u · P + v pixels later
    B    g: a word of pixels 2 k and 2 k + 1 for each output, COLUMNS of them in a row

A row of A may begin in the middle of a word, and so one copy serves all taps. `partial_sums` adds up what the jobs found.
"""
import math
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
from .partial_sums import added, shared

C_FLOATS = 384 << 10                                     # of a job, 1.5 MB
FACTORS = 384 << 10                                      # numbers of A and B, 768 KB
RUN = 256, 4096                                          # pixels of a run: at least, at most
GROUP = 2 * amx_tile.SIDE                                # pixels that fill a tile's words
_SMALL = 500_000                                         # multiply-adds that are not worth waking threads for
_ONE = np.float32(1)

full_tile, half_tile = (amx_tile.make_amx_tile(rows, "tdpbf16ps", halves=True) for rows in (amx_tile.ROWS, amx_tile.SIDE))
turn_pairs, pair_rows = make_transpose(LANES, narrow="in columns"), make_pairs(PRODUCT)


class Sizes(NamedTuple):
    """Of images, bands, blocks and jobs."""
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
    block_inputs: int                                    # of a job, whole tiles
    block_outputs: int
    band_rows: int                                       # R, of g
    band_columns: int                                    # of a row of g in a band
    bands: int                                           # of a run
    pixels: int                                          # of a run, zeros included: whole groups
    pixels_of_x: int                                     # of a row of A
    parts: int                                           # jobs that share the images


def paired_gradient(g, x, kernel, padding):
    """dW, see above, of stride 1      g: (N, H_out, W_out, O)   x: (N, H, W, I)   → (O, I, kh, kw)"""
    g, x = float32(g, "g"), float32(x, "x")
    (images, out_height, out_width, outputs), (_, height, width, inputs) = g.shape, x.shape
    kh, kw = kernel
    taps = kh * kw
    block_outputs = min(_whole(outputs, COLUMNS), max(COLUMNS, C_FLOATS // (taps * amx_tile.ROWS) // COLUMNS * COLUMNS))
    fitting = max(1, C_FLOATS // (taps * block_outputs * amx_tile.ROWS))
    block_inputs = min(_whole(inputs, amx_tile.ROWS), fitting * amx_tile.ROWS)
    blocks = -(-inputs // block_inputs) * -(-outputs // block_outputs)
    small = images * out_height * out_width * taps * inputs * outputs < _SMALL
    run = min(max(RUN[0], FACTORS // (block_inputs + block_outputs)), RUN[1])
    count = 1 if small else shared(blocks, threads.get_threads())
    band_columns = _even(out_width, run, count if images * out_height < count else 1)
    pitch = band_columns + kw - 1
    band_rows = max(1, min(out_height, run // pitch - kh + 1)) if band_columns == out_width else 1
    band = (band_rows + kh - 1) * pitch
    all_bands = images * -(-out_height // band_rows) * -(-out_width // band_columns)
    parts = max(1, min(count, all_bands, all_bands * band // RUN[0]))
    bands = max(1, min(run // band, -(-all_bands // parts)))
    pixels = _whole((bands - 1) * band + band_rows * pitch, GROUP)
    pixels_of_x = _whole(pixels + (kh - 1) * pitch + kw - 1, GROUP)
    pixels_of_x += GROUP if pixels_of_x // GROUP % 2 == 0 else 0         # an odd number of lines, which spread over the cache
    sizes = Sizes(images, height, width, inputs, out_height, out_width, outputs, kh, kw, padding[0], padding[2], block_inputs,
                  block_outputs, band_rows, band_columns, bands, pixels, pixels_of_x, parts)
    shape = parts, taps, _whole(outputs, block_outputs) // COLUMNS, _whole(inputs, block_inputs), COLUMNS
    sums = threads.working_memory("sums of pixels", math.prod(shape))
    threads.launch(sum_pairs["bfloat16"], tuple(sizes), flat(g), flat(x), sums, parallel=not small,
                   scratch=(block_inputs * pixels_of_x + block_outputs * pixels) // 2
                   + GROUP * max(block_inputs, block_outputs))
    return added(sums[:math.prod(shape)].reshape(shape), inputs, outputs).reshape(outputs, inputs, kh, kw)


def _whole(count, of):
    """As many as fill groups of so many"""
    return -(-count // of) * of


def _even(count, most, of):
    """The size of the parts of `count`, at most `most`, if a multiple of `of` parts are to be alike"""
    return -(-count // _whole(-(-count // most), of))


_SIGNATURE = sizes_of(Sizes), floats_in, floats_in, floats_out, floats_out, size


@kernels_for(**({"bfloat16": _SIGNATURE} if amx_tile.HAS_BFLOAT16 else {}))
def sum_pairs(thread, counter, sizes, g, x, sums, memory, share):
    """A job is a block of dW for a part of all bands."""
    sizes = Sizes(*sizes)
    row_blocks = (sizes.inputs + sizes.block_inputs - 1) // sizes.block_inputs
    column_blocks = (sizes.outputs + sizes.block_outputs - 1) // sizes.block_outputs
    job = next_job(counter)
    while job < sizes.parts * row_blocks * column_blocks:
        part, block = divmod(job, row_blocks * column_blocks)
        amx_tile.configure()
        row, column = divmod(block, column_blocks)
        _block(part, row * sizes.block_inputs, row_blocks * sizes.block_inputs, column * sizes.block_outputs,
               column_blocks * sizes.block_outputs // COLUMNS, sizes, g, x, sums, memory, thread * share)
        amx_tile.release()
        job = next_job(counter)


@inlined
def _block(part, row, all_rows, column, panels, sizes, g, x, sums, memory, a):
    """A block of sums[part], of (taps, panels, all_rows, COLUMNS); memory[a:] holds A, B, and pixels on their way"""
    rows, columns = min(sizes.block_inputs, sizes.inputs - row), min(sizes.block_outputs, sizes.outputs - column)
    b = a + sizes.block_inputs * sizes.pixels_of_x // 2
    group = b + sizes.block_outputs * sizes.pixels // 2
    taps, pitch = sizes.kernel_height * sizes.kernel_width, sizes.band_columns + sizes.kernel_width - 1
    seen = sizes.band_rows + sizes.kernel_height - 1     # rows of x that a band sees
    across = (sizes.out_width + sizes.band_columns - 1) // sizes.band_columns
    down = (sizes.out_height + sizes.band_rows - 1) // sizes.band_rows
    all_bands = sizes.images * down * across
    first, end = all_bands * part // sizes.parts, all_bands * (part + 1) // sizes.parts
    for begin in range(first, end, sizes.bands):
        bands = min(sizes.bands, end - begin)
        pixels = ((bands - 1) * seen + sizes.band_rows) * pitch
        pixels = (pixels + GROUP - 1) // GROUP * GROUP
        for k in range(0, pixels + (sizes.kernel_height - 1) * pitch + sizes.kernel_width - 1, GROUP):
            _gather(x, sizes.height, sizes.width, sizes.inputs, sizes.top, sizes.left, seen, pitch, begin, bands, down, across,
                    sizes, k, row, rows, memory, group, sizes.block_inputs)
            for channel in range(0, rows, LANES):
                place = a + (channel * sizes.pixels_of_x + k) // 2
                turn_pairs(memory, group + channel, sizes.block_inputs, _ONE, memory, place, sizes.pixels_of_x // 2)
        for k in range(0, pixels, GROUP):
            _gather(g, sizes.out_height, sizes.out_width, sizes.outputs, 0, 0, sizes.band_rows, sizes.band_columns, begin,
                    bands, down, across, sizes, k, column, columns, memory, group, sizes.block_outputs)
            for lane in range(0, columns, COLUMNS):
                place = b + (lane * sizes.pixels + k * COLUMNS) // 2
                for pair in range(amx_tile.SIDE):
                    source = group + 2 * pair * sizes.block_outputs + lane
                    pair_rows(memory, source, sizes.block_outputs, memory, place + pair * COLUMNS)
        for i in range(0, rows, amx_tile.ROWS):
            for lane in range(0, columns, COLUMNS):
                for tap in range(taps):
                    shift = tap // sizes.kernel_width * pitch + tap % sizes.kernel_width
                    source = 2 * a + i * sizes.pixels_of_x + shift
                    panel = (part * taps + tap) * panels + (column + lane) // COLUMNS
                    target = (panel * all_rows + row + i) * COLUMNS
                    _tile(rows - i, memory, source, sizes.pixels_of_x // 2, b + lane * sizes.pixels // 2, sums, target,
                          pixels // 2, target if begin > first else -1)


@inlined
def _tile(rows, memory, a, a_stride, b, c, target, words, begin):
    """C += A B, or = if `begin` is negative, of the larger tile, or of the smaller one if it holds all rows that are left"""
    if rows > amx_tile.SIDE:
        full_tile(memory, a, a_stride, memory, b, c, target, COLUMNS, words, c, begin, COLUMNS)
    else:
        half_tile(memory, a, a_stride, memory, b, c, target, COLUMNS, words, c, begin, COLUMNS)


@inlined
def _gather(source, height, width, channels, top, left, rows, columns, first, bands, down, across, sizes, k, channel, count,
            memory, target, row):
    """memory[target + row · p:] = `count` channels, from `channel` on, of GROUP pixels p of a run, from number k on

    A run is `bands` bands from number `first` on, each of kernel_height − 1 rows more than R, of P pixels. Zeros outside the
    images, and beyond `rows` rows of a band and `columns` pixels of a row.
    """
    pitch, band_height = sizes.band_columns + sizes.kernel_width - 1, sizes.band_rows + sizes.kernel_height - 1
    line, j = divmod(k, pitch)
    band, i = divmod(line, band_height)
    image, place = divmod(first + band, down * across)
    y, z = place // across * sizes.band_rows - top, place % across * sizes.band_columns - left
    for pixel in range(GROUP):
        goal = target + pixel * row
        if band < bands and i < rows and j < columns and 0 <= y + i and y + i < height and 0 <= z + j and z + j < width:
            at = ((image * height + y + i) * width + z + j) * channels + channel
            for lane in range(count):
                store(memory, goal + lane, load(source, at + lane))
        else:
            for lane in range(count):
                store(memory, goal + lane, np.float32(0))
        j += 1
        if j == pitch:
            i, j = i + 1, 0
            if i == band_height:
                band, i = band + 1, 0
                image, place = divmod(first + band, down * across)
                y, z = place // across * sizes.band_rows - top, place % across * sizes.band_columns - left
