"""Direct convolution: patches read from the image as it lies, where `patches.gather` would write each pixel kh · kw times.

    patch of pixel j        ├─ j ─┼ j + 1 ┼ j + 2 ┤                    kw · C terms, for each row u of the kernel
    patch of pixel j + 1          ├─ j + 1 ┼ j + 2 ┼ j + 3 ┤

Patches of neighbouring outputs lie s · C numbers apart, s the stride, which the rows of a register tile may (`microkernel`).
A job copies its rows of the image into a window, where this step also leads from the end of a row to the next: a tile takes
pixels of any row, and computes in vain only the one or two that would lie between two rows.

    row i of phase p of the window: row s · i + p of the image, `pitch` pixels; zeros right of a row are those left of the next

No product is saved, as `winograd` does, but no number is moved either, and so this is better while there are few channels. A
panel that is at most half full goes to another tile, a vector wide and twice as high.

Georganas et al. 2018, "Anatomy of high-performance deep learning convolutions on SIMD architectures", arXiv:1808.05567.
"""
from typing import NamedTuple

from .. import threads
from ..arrays import flat
from ..codegen.compiling import floats_in, floats_out, inlined, kernel, size, sizes_of
from ..codegen.memory import load, next_job, store
from . import epilogue, few_outputs, winograd
from .blocking import COLUMNS, JOBS_PER_THREAD, SMALL, TILE_ROWS
from .microkernel import LANES, PRODUCT, make_tile
from .patches import Geometry, enlarged

WINDOW = 96 << 10                                        # floats of a window at most, 384 KB
MOST_WEIGHTS = 64 << 10                                  # of a panel, which is read again for each tile
MOST_OUTPUTS = 4 * COLUMNS                               # the window is read again for each panel
MOST_PRODUCTS = 4 * LANES * LANES                        # of a pixel and a tap: Winograd's transforms pay with more
MOST_CHANNELS = 3 * LANES                                # to a few outputs, where most lanes of a tile are empty

wide_tile = make_tile(PRODUCT)
narrow_tile = make_tile(PRODUCT._replace(rows=2 * TILE_ROWS, vectors=1), b_stride=COLUMNS)


class Sizes(NamedTuple):
    """Of a convolution and of its jobs."""
    images: int
    outputs: int
    band: int                                            # rows of y that a job computes
    pitch: int                                           # pixels of a row of the window, a multiple of the stride
    phases: int                                          # of rows, see above
    plane: int                                           # rows of a phase
    window: int                                          # floats


def suits(geometry, weight):
    """Whether this is open, to float32 whose panels stay in the cache, and faster than what else is."""
    outputs, channels = weight.shape[:2]
    if weight.dtype != "float32" or weight.depth * COLUMNS > MOST_WEIGHTS or outputs > MOST_OUTPUTS:
        return False
    if winograd.suits(geometry, weight) and outputs * channels > MOST_PRODUCTS:
        return False
    if few_outputs.suits(geometry, weight) and (channels > MOST_CHANNELS or enlarged.py_func(geometry)):
        return False
    return sizes_of_bands(geometry, 1, 1, 1).window <= WINDOW


def sizes_of_bands(geometry, images, outputs, band):
    """With bands of so many rows."""
    stride = geometry.stride
    seen = (geometry.out_width - 1) * stride + geometry.kernel_width     # columns
    right = max(0, seen - geometry.left - geometry.width)
    pitch = -(-max(seen - min(geometry.left, right), geometry.out_width * stride) // stride) * stride
    phases = min(stride, geometry.kernel_height)
    plane = band + (geometry.kernel_height - 1) // stride
    overhang = 2 * TILE_ROWS * stride + geometry.kernel_width
    return Sizes(images, outputs, band, pitch, phases, plane, (phases * plane * pitch + overhang) * geometry.channels)


def convolve(x, geometry, weight, bias, residual, y):
    """y = conv(x) + bias (+ residual), written into y and returned

    x: contiguous (N, H, W, I)   geometry: of the image as the kernel sees it, which is x enlarged if x is smaller
    weight: Packed   bias, residual: as `epilogue.checked` gives them   y: (N, H_out, W_out, O)
    """
    images, height, _, outputs = y.shape
    parallel = y.size * weight.depth >= SMALL
    wanted = JOBS_PER_THREAD * threads.get_threads() if parallel else 1
    band = -(-height // min(height, -(-wanted // images)))
    while band > 1 and sizes_of_bands(geometry, images, outputs, band).window > WINDOW:
        band = (band + 1) // 2
    sizes = sizes_of_bands(geometry, images, outputs, band)
    threads.launch(convolve_bands, tuple(sizes), tuple(geometry), flat(x), weight.panels, bias, residual, flat(y),
                   parallel=parallel, scratch=sizes.window + 2 * TILE_ROWS * COLUMNS)
    return y


@kernel(sizes_of(Sizes), sizes_of(Geometry), floats_in, floats_in, floats_in, floats_in, floats_out, floats_out, size,
        dtype="float32")
def convolve_bands(thread, counter, sizes, geometry, x, panels, bias, residual, y, memory, share):
    """A job is a band of rows of an image."""
    sizes, geometry = Sizes(*sizes), Geometry(*geometry)
    bands = (geometry.out_height + sizes.band - 1) // sizes.band
    window, c = thread * share, thread * share + sizes.window
    job = next_job(counter)
    while job < sizes.images * bands:
        image, band = divmod(job, bands)
        first = band * sizes.band
        rows = min(sizes.band, geometry.out_height - first)
        fill(image, first, sizes, geometry, x, memory, window)
        for output in range(0, sizes.outputs, COLUMNS):
            _panel(image, first, rows, output, sizes, geometry, panels, bias, residual, y, memory, window, c)
        job = next_job(counter)


@inlined
def fill(image, first, sizes, geometry, x, memory, window):
    """memory[window:] = what rows from `first` on of y see of an image of x, zeros around it"""
    channels = geometry.channels
    left = min(geometry.left, sizes.pitch)
    inside = min(sizes.pitch - left, geometry.width)
    target = window
    for phase in range(sizes.phases):
        for i in range(sizes.plane):
            row = (first + i) * geometry.stride + phase - geometry.top
            if 0 <= row and row < geometry.height:
                source = (image * geometry.rows + row * geometry.rows // geometry.height) * geometry.columns * channels
                for c in range(left * channels):
                    store(memory, target + c, 0)
                start = target + left * channels
                if enlarged(geometry):
                    for j in range(inside):
                        pixel = source + j * geometry.columns // geometry.width * channels
                        for c in range(channels):
                            store(memory, start + j * channels + c, load(x, pixel + c))
                else:
                    for c in range(inside * channels):
                        store(memory, start + c, load(x, source + c))
                for c in range((left + inside) * channels, sizes.pitch * channels):
                    store(memory, target + c, 0)
            else:
                for c in range(sizes.pitch * channels):
                    store(memory, target + c, 0)
            target += sizes.pitch * channels
    for c in range(target, window + sizes.window):
        store(memory, c, 0)


@inlined
def _panel(image, first, rows, output, sizes, geometry, panels, bias, residual, y, memory, window, c):
    """`rows` rows of y from `first` on, in a panel of outputs"""
    channels, stride, width = geometry.channels, geometry.stride, geometry.out_width
    run, step = geometry.kernel_width * channels, sizes.pitch // stride
    b, lanes = output * geometry.kernel_height * run, min(COLUMNS, sizes.outputs - output)
    shift = epilogue.bias_of(image, sizes.outputs, bias) + output
    narrow = lanes <= LANES
    height = 2 * TILE_ROWS if narrow else TILE_ROWS
    columns = LANES if narrow else COLUMNS
    i, j = 0, 0
    for pixel in range(0, (rows - 1) * step + width, height):
        for u in range(geometry.kernel_height):
            a = window + ((u % stride * sizes.plane + u // stride) * sizes.pitch + pixel * stride) * channels
            if narrow:
                narrow_tile(memory, a, stride * channels, 1, panels, b + u * run * COLUMNS, memory, c, columns, run, u > 0)
            else:
                wide_tile(memory, a, stride * channels, 1, panels, b + u * run * COLUMNS, memory, c, columns, run, u > 0)
        for m in range(height):
            if j < width and i < rows:
                target = (((image * geometry.out_height + first + i) * width) + j) * sizes.outputs + output
                epilogue.write_vectors(memory, c + m * columns, lanes, bias, shift, residual, y, target)
            j += 1
            if j == step:
                i, j = i + 1, 0
