"""Convolution in tile registers that read an image as it lies, where `patches.gather` would write each pixel kh · kw times.

                 kw · C terms                             the window of a job in bfloat16, zeros around the image: R + kh − 1
    pixel j      ├─ j ─┼ j + 1 ┼ j + 2 ┤                  rows of Q + kw − 1 pixels, C channels of each, for a rectangle of
    pixel j + 1        ├─ j + 1 ┼ j + 2 ┼ j + 3 ┤         R × Q results

A patch's pixels are runs of terms, kh · kw of them, whose weights follow each other in a panel (`packing`). The runs of
neighbouring patches overlap, which a tile doesn't mind, for its rows of A may lie a pixel apart (`amx_tile`). An image is
rounded to bfloat16 once for all its taps; it may be enlarged by nearest neighbours on the way. The nearer to a square a
rectangle is, the fewer pixels belong to two windows.

A tile has 16 or 32 rows. If Q is no multiple of that, tiles run through all pixels of the window's rows, Q + kw − 1 of them;
what the last kw − 1 of a row give, whose patches reach into the next, is not looked at.
"""
from typing import NamedTuple

from ..codegen.compiling import inlined
from ..codegen.memory import store
from . import amx_tile, job_sizes
from .blocking import COLUMNS, panels_of
from .patches import narrow_run

LARGE = 128 * 128                                        # pixels of an image
LEAST, MOST = 128, 512                                   # of a small image that is a window: fewer are gathered faster
MOST_WORDS = 400_000                                     # of a window, 1.6 MB
LARGE_PIXEL = 256                                        # words: smaller ones are not set apart, which would take more cache

full_tile = amx_tile.make_amx_tile(amx_tile.ROWS, "tdpbf16ps", runs=True)


class Window(NamedTuple):
    """Of a job."""
    rows: int                                            # R
    columns: int                                         # Q
    words: int                                           # of two bfloat16
    sums: int                                            # rows of C


def of(geometry, weight):
    """The `Window` of each job, all alike; None if rows have to be gathered.

    It is a rectangle that tiles fill, or a whole small image. A pixel's channels must fill words of tiles, and strides leave
    out pixels.
    """
    kh, kw, channels = geometry.kernel_height, geometry.kernel_width, geometry.channels
    if (weight.dtype != "bfloat16" or not amx_tile.HAS_BFLOAT16 or geometry.stride > 1 or kh * kw == 1
            or channels % (2 * amx_tile.SIDE)):
        return None
    most = job_sizes.of(weight.dtype).pixels
    for pixels in (2 * most, most) if geometry.out_pixels >= LARGE else (most,):
        ways = [_window(pixels // columns, columns, geometry)
                for columns in range(amx_tile.ROWS, pixels + 1, amx_tile.ROWS) if pixels % columns == 0]
        ways = [way for way in ways if geometry.out_height % way.rows == 0 and geometry.out_width % way.columns == 0
                and way.words <= MOST_WORDS]
        if ways:
            return min(ways, key=lambda way: way.words)
    whole = _window(geometry.out_height, geometry.out_width, geometry)
    small = LEAST <= geometry.out_pixels <= MOST and whole.words <= MOST_WORDS
    return whole if small else None


def _window(rows, columns, geometry):
    kh, kw, tile = geometry.kernel_height, geometry.kernel_width, amx_tile.ROWS
    sums = -(-rows * across.py_func(columns, kw) // tile) * tile
    pixels = (rows + kh - 1) * (columns + kw - 1)
    reach = sums + (kh - 1) * (columns + kw - 1) + kw - 1 if columns % tile else 0      # what the last tile reads
    return Window(rows, columns, max(pixels, reach) * words_of_pixel.py_func(geometry.channels), sums)


@inlined
def across(columns, kernel_width):
    """Rows of C for a row of results"""
    return columns if columns % amx_tile.ROWS == 0 else columns + kernel_width - 1


@inlined
def words_of_pixel(channels):
    """From a pixel of a window to the next, for large ones an odd multiple of a cache line: see amx_tile.py"""
    words = channels // 2
    return words + amx_tile.SIDE if words % (2 * amx_tile.SIDE) == 0 and words >= LARGE_PIXEL else words


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
    size = words_of_pixel(channels)
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
                for c in range(channels // 2):
                    store(memory, target + c, 0)
            target += size


@inlined
def _multiply_panel(sizes, geometry, panels, b, memory, window, c):
    """C = the window's patches times the panel whose words begin at number b of `panels`"""
    pixel_words, pitch = words_of_pixel(geometry.channels), sizes.window_columns + geometry.kernel_width - 1
    columns = across(sizes.window_columns, geometry.kernel_width)
    later = b + sizes.depth // 2 * COLUMNS               # the next panel
    for row in range(0, sizes.block_rows // sizes.window_columns * columns, amx_tile.ROWS):
        i, j = divmod(row, columns)
        full_tile(memory, window + (i * pitch + j) * pixel_words, pixel_words, panels, b, memory, c + row * sizes.width,
                  sizes.width, geometry.channels // 2, memory, -1, 0, geometry.kernel_height, pitch * pixel_words,
                  geometry.kernel_width, pixel_words, later)
        later += sizes.depth // 2 * amx_tile.AHEAD
