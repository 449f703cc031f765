"""Convolution in tile registers that read an image as it lies, where `patches.gather` would write each pixel kh · kw times.

                 kw · C terms                             the window of a job in bfloat16, zeros around the image: R + kh − 1
    pixel j      ├─ j ─┼ j + 1 ┼ j + 2 ┤                  rows of Q + kw − 1 pixels, C channels of each, for a rectangle of
    pixel j + 1        ├─ j + 1 ┼ j + 2 ┼ j + 3 ┤         R × Q results

A patch's pixels in row u of the kernel follow each other, and so do their weights in a panel (`packing`): they are one run of
terms. The runs of neighbouring patches overlap, which a tile doesn't mind, for its rows of A may lie C / 2 words apart
(`amx_tile`). An image is rounded to bfloat16 once for all its taps; it may be enlarged by nearest neighbours on the way. The
nearer to a square a rectangle is, the fewer pixels belong to two windows.
"""
from typing import NamedTuple

from ..codegen.compiling import inlined
from ..codegen.memory import store
from . import amx_tile
from .blocking import COLUMNS, panels_of
from .patches import narrow_run

PIXELS, LARGE = (512, 256), 128 * 128                    # of a job, which must not leave an image; 512 of a large one
MOST_WORDS = 400_000                                     # of a window, 1.6 MB

full_tile = amx_tile.make_amx_tile(amx_tile.ROWS, "tdpbf16ps", runs=True)


class Window(NamedTuple):
    """Of a job."""
    rows: int                                            # R
    columns: int                                         # Q
    words: int                                           # of two bfloat16


def of(geometry, weight):
    """The `Window` of each job, all alike; None if rows have to be gathered.

    Tiles must be rows of one row of pixels, a pixel's channels must fill words of tiles, and strides leave out pixels.
    """
    kh, kw, channels = geometry.kernel_height, geometry.kernel_width, geometry.channels
    if (weight.dtype != "bfloat16" or not amx_tile.HAS_BFLOAT16 or geometry.stride > 1 or kh * kw == 1
            or channels % (2 * amx_tile.SIDE)):
        return None
    for pixels in PIXELS if geometry.out_pixels >= LARGE else PIXELS[1:]:
        ways = [Window(pixels // columns, columns, (pixels // columns + kh - 1) * (columns + kw - 1) * channels // 2)
                for columns in range(amx_tile.ROWS, pixels + 1, amx_tile.ROWS) if pixels % columns == 0]
        ways = [way for way in ways if geometry.out_height % way.rows == 0 and geometry.out_width % way.columns == 0
                and way.words <= MOST_WORDS]
        if ways:
            return min(ways, key=lambda way: way.words)
    return None


@inlined
def pixel(first, row, sizes, geometry):
    """The number, among all results of all images, of a job's number `row`; `first` is the job's number times its pixels."""
    out_pixels = geometry.out_height * geometry.out_width
    image, inside = divmod(first, out_pixels)
    across = geometry.out_width // sizes.window_columns
    down, beside = divmod(inside // sizes.block_rows, across)
    i, j = divmod(row, sizes.window_columns)
    i += down * (sizes.block_rows // sizes.window_columns)
    return image * out_pixels + i * geometry.out_width + beside * sizes.window_columns + j


@inlined
def multiply(first, column, end, sizes, geometry, x, panels, memory, window, c):
    """memory[c:] = the sums of a job of `matmul`, whose window begins at memory[window]"""
    _fill(pixel(first, 0, sizes, geometry), sizes, geometry, x, memory, window)
    panel, count, _, _ = panels_of(column, end, sizes)
    for p in range(count):
        b = (panel + p) * (sizes.depth // 2) * COLUMNS
        _multiply_panel(sizes, geometry, panels, b, memory, window, c + p * COLUMNS)


@inlined
def _fill(first, sizes, geometry, x, memory, window):
    """memory[window:] = what a rectangle, the first of whose results is number `first` of all, sees of x, in bfloat16"""
    channels = geometry.channels
    size = channels // 2
    image, inside = divmod(first, geometry.out_height * geometry.out_width)
    top, left = divmod(inside, geometry.out_width)
    top, left = top - geometry.top, left - geometry.left
    target = window
    for i in range(top, top + sizes.block_rows // sizes.window_columns + geometry.kernel_height - 1):
        for j in range(left, left + sizes.window_columns + geometry.kernel_width - 1):
            if 0 <= i and i < geometry.height and 0 <= j and j < geometry.width:
                row, column = i, j
                if geometry.rows != geometry.height or geometry.columns != geometry.width:
                    row, column = i * geometry.rows // geometry.height, j * geometry.columns // geometry.width
                source = ((image * geometry.rows + row) * geometry.columns + column) * channels
                narrow_run(x, source, memory, 2 * target, channels)
            else:
                for c in range(size):
                    store(memory, target + c, 0)
            target += size


@inlined
def _multiply_panel(sizes, geometry, panels, b, memory, window, c):
    """C = the window's patches times the panel whose words begin at number b of `panels`"""
    size, pitch = geometry.channels // 2, sizes.window_columns + geometry.kernel_width - 1
    for row in range(0, sizes.block_rows, amx_tile.ROWS):
        i, j = divmod(row, sizes.window_columns)
        full_tile(memory, window + (i * pitch + j) * size, size, panels, b, memory, c + row * sizes.width, sizes.width,
                  geometry.kernel_width * size, memory, -1, 0, geometry.kernel_height, pitch * size)
