"""Convolution in tile registers that read an image as it lies, where `patches.gather` would write each pixel kh · kw times.

                 kw · C terms                             the window of a job in bfloat16, zeros around the image:
    pixel j      ├─ j ─┼ j + 1 ┼ j + 2 ┤                  W + kw − 1 pixels in a row, C channels of each
    pixel j + 1        ├─ j + 1 ┼ j + 2 ┼ j + 3 ┤

A patch's pixels in row u of the kernel follow each other, and so do their weights in a panel (`packing`): they are one run of
terms. The runs of neighbouring patches overlap, which a tile doesn't mind, for its rows of A may lie C / 2 words apart
(`amx_tile`). An image is rounded to bfloat16 once for all its taps; it may be enlarged by nearest neighbours on the way.
"""
from ..codegen.compiling import inlined
from ..codegen.memory import store
from . import amx_tile
from .blocking import COLUMNS, DEPTH, panels_of
from .patches import narrow_run

ROWS = 256                                               # of a job, which must not leave an image
MOST_WORDS = 400_000                                     # of a window, 1.6 MB

full_tile = amx_tile.make_amx_tile(amx_tile.ROWS, "tdpbf16ps")


def words(geometry, weight):
    """How large a job's window is, in words of two bfloat16; 0 if rows have to be gathered.

    Tiles must be rows of one row of pixels, a pixel's channels must fill words of tiles, and strides leave out pixels.
    """
    height, width = geometry.out_height, geometry.out_width
    if (weight.dtype != "bfloat16" or not amx_tile.HAS_BFLOAT16 or geometry.stride > 1
            or geometry.kernel_height * geometry.kernel_width == 1 or width % amx_tile.ROWS or height * width % ROWS
            or geometry.channels % (2 * amx_tile.SIDE)):
        return 0
    rows = min((ROWS - 1) // width + 2, height) + geometry.kernel_height - 1
    size = rows * (width + geometry.kernel_width - 1) * geometry.channels // 2
    return size if size <= MOST_WORDS else 0


@inlined
def multiply(first, last, column, end, sizes, geometry, x, panels, memory, window, c):
    """memory[c:] = the sums of a job of `matmul`, whose window begins at memory[window]"""
    _fill(first, last, geometry, x, memory, window)
    panel, count, _, _ = panels_of(column, end, sizes)
    for p in range(count):
        b = (panel + p) * (sizes.depth // 2) * COLUMNS
        _multiply_panel(first, last, geometry, panels, b, memory, window, c + p * COLUMNS, sizes.width)


@inlined
def _fill(first, last, geometry, x, memory, window):
    """memory[window:] = what rows first … last − 1 of the product see of x, in bfloat16"""
    channels, pitch = geometry.channels, geometry.out_width + geometry.kernel_width - 1
    size = channels // 2
    image, pixel = divmod(first, geometry.out_height * geometry.out_width)
    top, bottom = pixel // geometry.out_width, (pixel + last - first - 1) // geometry.out_width
    target = window
    for i in range(top - geometry.top, bottom - geometry.top + geometry.kernel_height):
        for j in range(-geometry.left, pitch - geometry.left):
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
def _multiply_panel(first, last, geometry, panels, b, memory, window, c, width):
    """C = the window's patches times the panel whose words begin at number b of `panels`; memory[c:] has rows of `width`"""
    size, pitch = geometry.channels // 2, geometry.out_width + geometry.kernel_width - 1
    run = geometry.kernel_width * size
    start = first % (geometry.out_height * geometry.out_width)
    top = start // geometry.out_width
    for u in range(geometry.kernel_height):
        for k in range(0, run, DEPTH):
            for row in range(0, last - first, amx_tile.ROWS):
                i, j = divmod(start + row, geometry.out_width)
                source = window + ((i - top + u) * pitch + j) * size + k
                target = c + row * width
                begin = target if u > 0 or k > 0 else -1
                full_tile(memory, source, size, panels, b + (u * run + k) * COLUMNS, memory, target, width, min(DEPTH, run - k),
                          memory, begin, width)
