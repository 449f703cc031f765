"""The gradient of a weight of few channels: what weights.py sums, of an image read as it lies.

    dW[o, i, u, v] = Σ over n, r, q of g[n, r, q, o] · x[n, s·r + u − top, s·q + v − left, i]

A job copies a band of rows of x into a window, as the forward pass does (`products/direct`). There the kw · I numbers that
a pixel of g sees in row u of the kernel lie side by side, and those of the next pixel s · I further, also from the end of a
row to the next one. They are the rows of the register tile, outputs its columns, and the sum runs over all pixels of the
band; where the window has pixels between two rows g has zeros. So a number of x is copied once for all taps. Few outputs go
to a tile that is one vector wide and twice as high.
"""
import math
from typing import NamedTuple

from .. import threads
from ..arrays import flat, float32
from ..codegen.compiling import floats_in, floats_out, inlined, kernel, size, sizes_of
from ..codegen.memory import load, next_job, store
from ..products import direct
from ..products.blocking import COLUMNS, JOBS_PER_THREAD, SMALL, TAIL_ROWS, TILE_ROWS
from ..products.matmul import full_tile, tail_tile
from ..products.microkernel import LANES, PRODUCT, make_tile
from ..products.patches import Geometry
from .partial_sums import added

RUN = 500                                                # pixels of a band, or so
MOST_SUMS = 96 << 10                                     # floats of all sums, 384 KB
LEAST_PIXELS = 32                                        # of a band: sums are read and written again for each
narrow_tile = make_tile(PRODUCT._replace(rows=2 * TILE_ROWS, vectors=1))
narrow_tail = make_tile(PRODUCT._replace(rows=2 * TAIL_ROWS, vectors=1))


class Blocks(NamedTuple):
    """Of the sums, and of jobs."""
    lanes: int                                           # of a panel of outputs
    panels: int
    rows: int                                            # kw · I,
    padded_rows: int                                     # and what whole tiles compute
    pixels: int                                          # of a band of g


def direct_gradient(g, x, kernel, stride, padding):
    """dW, see above      g: (N, H_out, W_out, O)   x: (N, H, W, I)   kernel: (kh, kw)

    → (O, I, kh, kw), or None if images are so small or channels so many that this doesn't pay
    """
    g, x = float32(g, "g"), float32(x, "x")
    (images, out_height, out_width, outputs), (_, height, width, inputs) = g.shape, x.shape
    kh, kw = kernel
    geometry = Geometry(height, width, inputs, kh, kw, stride, padding[0], padding[2], out_height, out_width, height, width)
    band = max(1, min(out_height, RUN // out_width))
    sizes = direct.sizes_of_bands(geometry, images, outputs, band)
    lanes = LANES if outputs <= LANES else COLUMNS
    panels, rows = -(-outputs // lanes), kw * inputs
    blocks = Blocks(lanes, panels, rows, _padded(rows, lanes), band * (sizes.pitch // stride))
    floats = kh * panels * blocks.padded_rows * lanes
    if floats > MOST_SUMS or sizes.window > direct.WINDOW or blocks.pixels < LEAST_PIXELS:
        return None
    small = g.size * kh * rows < SMALL
    parts = 1 if small else min(images * -(-out_height // band), JOBS_PER_THREAD * threads.get_threads())
    shape = parts, kh * kw, panels, inputs, lanes
    sums = threads.working_memory("sums of pixels", math.prod(shape))[:math.prod(shape)]
    threads.launch(sum_bands, tuple(sizes), tuple(blocks), tuple(geometry), parts, flat(g), flat(x), sums, parallel=not small,
                   scratch=sizes.window + panels * lanes * blocks.pixels + floats + 2 * TILE_ROWS)
    return added(sums.reshape(shape), inputs, outputs).reshape(outputs, inputs, kh, kw)


def _padded(rows, lanes):
    """Rows that tiles compute."""
    tall, low = (2 * TILE_ROWS, 2 * TAIL_ROWS) if lanes == LANES else (TILE_ROWS, TAIL_ROWS)
    whole = (rows + tall - 2 * low - 1) // tall * tall
    return whole + max(0, -(-(rows - whole) // low)) * low


@kernel(sizes_of(direct.Sizes), sizes_of(Blocks), sizes_of(Geometry), size, floats_in, floats_in, floats_out, floats_out,
        size)
def sum_bands(thread, counter, sizes, blocks, geometry, parts, g, x, sums, memory, share):
    """A job is a part of all bands: memory of a thread holds the window, g in panels, and the sums, a rectangle for each u."""
    sizes, blocks, geometry = direct.Sizes(*sizes), Blocks(*blocks), Geometry(*geometry)
    window = thread * share
    seen = window + sizes.window
    c = seen + blocks.panels * blocks.lanes * blocks.pixels
    down = (geometry.out_height + sizes.band - 1) // sizes.band
    bands, step = sizes.images * down, sizes.pitch // geometry.stride
    job = next_job(counter)
    while job < parts:
        for i in range(blocks.panels * geometry.kernel_height * blocks.padded_rows * blocks.lanes):
            store(memory, c + i, 0)
        for band in range(bands * job // parts, bands * (job + 1) // parts):
            image, first = band // down, band % down * sizes.band
            rows = min(sizes.band, geometry.out_height - first)
            direct.fill(image, first, sizes, geometry, x, memory, window)
            for panel in range(blocks.panels):
                b = seen + panel * blocks.pixels * blocks.lanes
                _copy(image, first, rows, panel * blocks.lanes, step, sizes, blocks, geometry, g, memory, b)
                for u in range(geometry.kernel_height):
                    a = window + (u % geometry.stride * sizes.plane + u // geometry.stride) * sizes.pitch * geometry.channels
                    target = c + (panel * geometry.kernel_height + u) * blocks.padded_rows * blocks.lanes
                    _multiply(blocks, geometry.stride * geometry.channels, (rows - 1) * step + geometry.out_width, memory, a, b,
                              target)
        _store(job, blocks, geometry, memory, c, sums)
        job = next_job(counter)


@inlined
def _copy(image, first, rows, output, step, sizes, blocks, geometry, g, memory, target):
    """memory[target:] = a panel of `rows` rows of g, zeros beyond its outputs, and between two rows"""
    lanes = min(blocks.lanes, sizes.outputs - output)
    for i in range(rows):
        source = ((image * geometry.out_height + first + i) * geometry.out_width) * sizes.outputs + output
        for j in range(step):
            goal = target + (i * step + j) * blocks.lanes
            if j < geometry.out_width and lanes == COLUMNS:              # known when this is compiled: whole vectors
                for lane in range(COLUMNS):
                    store(memory, goal + lane, load(g, source + j * sizes.outputs + lane))
            elif j < geometry.out_width and lanes == LANES and blocks.lanes == LANES:
                for lane in range(LANES):
                    store(memory, goal + lane, load(g, source + j * sizes.outputs + lane))
            else:
                for lane in range(blocks.lanes):
                    store(memory, goal + lane, 0)
                if j < geometry.out_width:
                    for lane in range(lanes):
                        store(memory, goal + lane, load(g, source + j * sizes.outputs + lane))


@inlined
def _multiply(blocks, step, depth, memory, a, b, target):
    """C += Aᵀ B      A: kw · I numbers of each pixel, pixels `step` apart   B: a panel of g"""
    if blocks.lanes == LANES:
        whole = (blocks.rows + 2 * TILE_ROWS - 4 * TAIL_ROWS - 1) // (2 * TILE_ROWS) * 2 * TILE_ROWS
        for i in range(0, whole, 2 * TILE_ROWS):
            narrow_tile(memory, a + i, 1, step, memory, b, memory, target + i * LANES, LANES, depth, True)
        for i in range(whole, blocks.rows, 2 * TAIL_ROWS):
            narrow_tail(memory, a + i, 1, step, memory, b, memory, target + i * LANES, LANES, depth, True)
    else:
        whole = (blocks.rows + TILE_ROWS - 2 * TAIL_ROWS - 1) // TILE_ROWS * TILE_ROWS
        for i in range(0, whole, TILE_ROWS):
            full_tile(memory, a + i, 1, step, memory, b, memory, target + i * COLUMNS, COLUMNS, depth, True)
        for i in range(whole, blocks.rows, TAIL_ROWS):
            tail_tile(memory, a + i, 1, step, memory, b, memory, target + i * COLUMNS, COLUMNS, depth, True)


@inlined
def _store(part, blocks, geometry, memory, c, sums):
    """sums[part, u, v, panel, i] = what was summed for a panel in row v · I + i of rectangle u"""
    for panel in range(blocks.panels):
        for u in range(geometry.kernel_height):
            source = c + (panel * geometry.kernel_height + u) * blocks.padded_rows * blocks.lanes
            for v in range(geometry.kernel_width):
                tap = (part * geometry.kernel_height + u) * geometry.kernel_width + v
                target = (tap * blocks.panels + panel) * geometry.channels * blocks.lanes
                for i in range(geometry.channels * blocks.lanes):
                    store(sums, target + i, load(memory, source + v * geometry.channels * blocks.lanes + i))
