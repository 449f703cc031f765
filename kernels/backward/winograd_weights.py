"""The gradient of a 3×3 kernel by Winograd's F(4×4, 3×3): a quarter of the products that weights.py makes.

Forwards, Y = Aᵀ [U ⊙ V] A for each tile of 4×4 outputs, with U = G w Gᵀ and V = Bᵀ d B (winograd_transforms). All of it is
linear in U, so that the gradient goes back through the transposed transforms:

    dw = Gᵀ dU G      dU[ξ] = Σ over tiles of V[ξ] Ĝ[ξ]      Ĝ = A g Aᵀ, g the tile's 4×4 gradients

For a group of tiles at a time: V, as the forward pass transforms it; Ĝ, in panels of outputs; then for each of the 36 places
ξ the product of two matrices whose sum runs over the group's tiles, a job for some of its channels. At last dU becomes dw.
"""
import math
from typing import NamedTuple

import numpy as np

from .. import threads
from ..arrays import CACHE_LINE, flat, float32
from ..codegen.compiling import floats_in, floats_out, kernel, size, sizes_of
from ..codegen.memory import load, next_job, store
from ..products import winograd
from ..products.matmul import TAIL_ROWS, TILE_ROWS, full_tile, tail_tile
from ..products.microkernel import LANES
from ..products.packing import COLUMNS
from ..products.patches import Geometry
from ..products.winograd import DEPTH, POINTS
from ..products.winograd_transforms import KERNEL, OUTPUTS, PATCH, make_transform, output_gradient, weight_gradient
from .partial_sums import added

FLOATS = 4 << 20                                         # of dU at most, 16 MB
GROUP = 1 << 20                                          # floats of V, and of Ĝ, 4 MB
RUN = 128                                                # tiles that are summed at once: a panel of them is 16 KB
PANELS = 4                                               # of a job
ASIDE = (DEPTH + TILE_ROWS) * COLUMNS                    # floats of a panel of sums, with what tiles overhang
LEAST_OUTPUTS = 2 * LANES                                # with fewer the tile is half empty
LEAST_PRODUCTS = 4 * LANES * LANES                       # of a pixel and a tap: transforms pay with more
LEAST_TILES = 16

transform_gradient = make_transform(output_gradient, OUTPUTS, LANES)
transform_sum = make_transform(weight_gradient, PATCH, LANES)


class Sizes(NamedTuple):
    """Of a group of tiles."""
    first: int                                           # of all tiles of all images
    count: int
    capacity: int                                        # tiles that there is room for
    rows: int                                            # of tiles in an image
    columns: int
    height: int                                          # of g
    width: int
    inputs: int
    outputs: int
    v_step: int                                          # from ξ to ξ + 1 in V,
    g_step: int                                          # in Ĝ,
    u_step: int                                          # and in dU


def suits(g, x, kernel, stride):
    """Whether this way is open and pays: 3×3, stride 1, whole vectors of channels, neither few nor very many, some tiles."""
    products, outputs = g.shape[3] * x.shape[3], g.shape[3]
    return (kernel == (KERNEL, KERNEL) and stride == 1 and outputs % LANES == x.shape[3] % LANES == 0
            and outputs >= LEAST_OUTPUTS and LEAST_PRODUCTS < products <= FLOATS // POINTS
            and math.prod(g.shape[:3]) >= LEAST_TILES * OUTPUTS * OUTPUTS)


def winograd_gradient(g, x, padding, size=None):
    """dw, see above, of stride 1      g: (N, H_out, W_out, O)   x: (N, H, W, I)   → (O, I, 3, 3)

    size: height and width to which nearest neighbours have enlarged x
    """
    g, x = float32(g, "g"), float32(x, "x")
    (images, out_height, out_width, outputs), (_, height, width, inputs) = g.shape, x.shape
    geometry = Geometry(*(size or (height, width)), inputs, KERNEL, KERNEL, 1, padding[0], padding[2], out_height, out_width,
                        height, width)
    rows, columns = -(-out_height // OUTPUTS), -(-out_width // OUTPUTS)
    tiles, panels, blocks = images * rows * columns, -(-outputs // COLUMNS), -(-inputs // DEPTH)
    deep = max(blocks * DEPTH, panels * COLUMNS)
    group = -(-tiles // -(-tiles * POINTS * deep // GROUP))
    v_step, g_step, u_step = (count + CACHE_LINE for count in (blocks * DEPTH * group, panels * COLUMNS * group,
                                                               panels * COLUMNS * inputs))
    v, of_g = threads.working_memory("winograd", POINTS * v_step), threads.working_memory("of_winograd", POINTS * g_step)
    of_u = threads.working_memory("sums of points", POINTS * u_step + threads.get_threads() * ASIDE)
    for first in range(0, tiles, group):
        sizes = Sizes(first, min(group, tiles - first), group, rows, columns, out_height, out_width, inputs, outputs, v_step,
                      g_step, u_step)
        of_x = winograd.Sizes(first, sizes.count, group, rows, columns, height, width, outputs, 0, v_step, 0)
        threads.launch(winograd.transform_patches, tuple(of_x), tuple(geometry), 1, flat(x), v, scratch=winograd.PATCH_FLOATS)
        threads.launch(transform_gradients, tuple(sizes), flat(g), of_g, scratch=OUTPUTS * OUTPUTS * outputs)
        threads.launch(sum_points, tuple(sizes), v, of_g, of_u)
    shape = 1, KERNEL * KERNEL, panels, inputs, COLUMNS
    sums = threads.working_memory("sums of pixels", math.prod(shape))[:math.prod(shape)]
    threads.launch(transform_sums, tuple(sizes), of_u, sums)
    return added(sums.reshape(shape), inputs, outputs).reshape(outputs, inputs, KERNEL, KERNEL)


@kernel(sizes_of(Sizes), floats_in, floats_out, floats_out, size)
def transform_gradients(thread, counter, sizes, g, of_g, memory, share):
    """Ĝ[ξ][panel][tile] of the group. A job is a tile."""
    sizes = Sizes(*sizes)
    outputs, patch = sizes.outputs, thread * share
    tile = next_job(counter)
    while tile < sizes.count:
        image, place = divmod(sizes.first + tile, sizes.rows * sizes.columns)
        row, column = place // sizes.columns * OUTPUTS, place % sizes.columns * OUTPUTS
        start = ((image * sizes.height + row) * sizes.width + column) * outputs
        inside = row + OUTPUTS <= sizes.height and column + OUTPUTS <= sizes.width
        if not inside:                                   # zeros beyond the edge
            for i in range(OUTPUTS):
                for j in range(OUTPUTS):
                    target, source = patch + (i * OUTPUTS + j) * outputs, start + (i * sizes.width + j) * outputs
                    there = row + i < sizes.height and column + j < sizes.width
                    for c in range(outputs):
                        store(memory, target + c, load(g, source + c) if there else np.float32(0))
        for c in range(0, outputs, LANES):
            target = (c // COLUMNS * sizes.capacity + tile) * COLUMNS + c % COLUMNS
            if inside:
                transform_gradient(g, start + c, sizes.width * outputs, outputs, of_g, target, PATCH * sizes.g_step,
                                   sizes.g_step)
            else:
                transform_gradient(memory, patch + c, OUTPUTS * outputs, outputs, of_g, target, PATCH * sizes.g_step,
                                   sizes.g_step)
        tile = next_job(counter)


@kernel(sizes_of(Sizes), floats_in, floats_in, floats_out)
def sum_points(thread, counter, sizes, v, of_g, of_u):
    """dU[ξ][panel][input] of the group, added to that of the groups before. A job is a block of inputs and some panels.

    Sums of RUN tiles are made aside, behind dU, and then added: numbers are rounded less often than in one long sum. What
    tiles overhang stays there, too.
    """
    sizes = Sizes(*sizes)
    aside = POINTS * sizes.u_step + thread * ASIDE
    panels, blocks = (sizes.outputs + COLUMNS - 1) // COLUMNS, (sizes.inputs + DEPTH - 1) // DEPTH
    parts = (panels + PANELS - 1) // PANELS
    job = next_job(counter)
    while job < POINTS * parts * blocks:
        point, place = divmod(job, parts * blocks)
        part, block = divmod(place, blocks)
        rows = min(DEPTH, sizes.inputs - block * DEPTH)
        whole = (rows + TILE_ROWS - 2 * TAIL_ROWS - 1) // TILE_ROWS * TILE_ROWS
        overhang = whole > rows or (rows - whole) % TAIL_ROWS > 0
        for k in range(0, sizes.count, RUN):
            depth, further = min(RUN, sizes.count - k), sizes.first > 0 or k > 0
            a = point * sizes.v_step + (block * sizes.capacity + k) * DEPTH
            for panel in range(part * PANELS, min((part + 1) * PANELS, panels)):
                b = point * sizes.g_step + (panel * sizes.capacity + k) * COLUMNS
                total = point * sizes.u_step + (panel * sizes.inputs + block * DEPTH) * COLUMNS
                target = aside if further or overhang else total
                for i in range(0, whole, TILE_ROWS):
                    full_tile(v, a + i, 1, DEPTH, of_g, b, of_u, target + i * COLUMNS, COLUMNS, depth, False)
                for i in range(whole, rows, TAIL_ROWS):
                    tail_tile(v, a + i, 1, DEPTH, of_g, b, of_u, target + i * COLUMNS, COLUMNS, depth, False)
                if further:
                    for i in range(rows * COLUMNS):
                        store(of_u, total + i, load(of_u, total + i) + load(of_u, aside + i))
                elif overhang:
                    for i in range(rows * COLUMNS):
                        store(of_u, total + i, load(of_u, aside + i))
        job = next_job(counter)


@kernel(sizes_of(Sizes), floats_in, floats_out)
def transform_sums(thread, counter, sizes, of_u, sums):
    """sums[tap][panel][input] = dw. A job is an input."""
    sizes = Sizes(*sizes)
    panels = (sizes.outputs + COLUMNS - 1) // COLUMNS
    tap = panels * sizes.inputs * COLUMNS
    i = next_job(counter)
    while i < sizes.inputs:
        for panel in range(panels):
            place = (panel * sizes.inputs + i) * COLUMNS
            for lane in range(0, COLUMNS, LANES):
                transform_sum(of_u, place + lane, PATCH * sizes.u_step, sizes.u_step, sums, place + lane, KERNEL * tap, tap)
        i = next_job(counter)
