"""x as bytes: what an int8 product reads in place of an image or a matrix of float32, made once for all its outputs.

Each pixel (each row of a matrix) becomes a row of bytes with a scale for each block of channels: the largest number of the
block is found, then the quotients are rounded. Rows follow each other as pixels do, with zeros where a kernel looks beyond
an image, so that what tap (u, v) sees of a run of pixels is that many rows as well, u · pitch + v rows further on:

    ┌ pitch ──────┐
    0 0 0 0 0 0 0 0          `top` rows of zeros above an image are those below the image before it,
    0 x x x x x x x          `left` zeros before a row of pixels those after the row before
    0 x x x x x x x
    0 0 0 0 ...

Bytes are 128 more than the numbers, for VNNI wants them without a sign; zeros are rows of 128 with a scale of 0. Where the
processor has no products of bytes, rows are the same whole numbers as float32.
"""
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..codegen.compiling import floats_in, floats_out, inlined, kernel, sizes_of
from ..codegen.memory import load, next_job, store, store_byte
from ..int8 import BLOCK, HIGHEST
from .amx_tile import ROWS
from .int8_tile import HAS_DOT, emit_spread
from .microkernel import BYTE, FLOAT, INTEGER, LANE, LANES, PRODUCT, emit_prefetch, vector_pointer
from .patches import Geometry, enlarged

RUN = 32                                                 # pixels of a job
AHEAD = 2048                                             # numbers of x that are fetched ahead: hardware stops at each page
LINE = 16                                                # words of a cache line

_WORDS = ir.VectorType(LANE, LANES)
_POSITIVE, _SHARE = np.uint32(0x7fffffff), np.float32(1 / HIGHEST)


class Layout(NamedTuple):
    """Of the rows, and of their scales, which follow them: those of the first block, then those of the second, ..."""
    images: int
    pitch: int                                           # rows from a row of pixels to the next
    image: int                                           # from an image to the next
    filled: int                                          # rows in all
    rows: int                                            # and with what tiles read beyond them
    words: int                                           # from a row to the next

    @property
    def scales(self):
        """Where they begin"""
        return self.rows * self.words


def layout_of(geometry, images):
    """The `Layout` for a convolution of so many images."""
    stride, kh, kw = geometry.stride, geometry.kernel_height, geometry.kernel_width
    right = max(0, (geometry.out_width - 1) * stride + kw - geometry.left - geometry.width)
    below = max(0, (geometry.out_height - 1) * stride + kh - geometry.top - geometry.height)
    pitch = max(geometry.width + max(geometry.left, right), geometry.out_width)
    height = max(-(-(geometry.height + max(geometry.top, below)) // stride), geometry.out_height) * stride
    image = height * pitch
    filled = images * image + (kh - 1) * pitch + kw - 1
    words = -(-geometry.channels // 4) * (1 if HAS_DOT else 4)
    if words > LINE:                                     # an odd number of lines: a power of two apart, rows would all fight
        words = (-(-words // LINE) // 2 * 2 + 1) * LINE  # for the same ones of the cache
    return Layout(images, pitch, image, filled, filled + (ROWS + PRODUCT.rows) * stride, words)


def size_of(layout, geometry):
    """float32 numbers of memory that it takes"""
    return layout.rows * (layout.words + -(-geometry.channels // BLOCK))


@kernel(sizes_of(Layout), sizes_of(Geometry), floats_in, floats_out, dtype="int8")
def round_rows(thread, counter, layout, geometry, x, target):
    """A job is a run of rows."""
    layout, geometry = Layout(*layout), Geometry(*geometry)
    job = next_job(counter)
    while job * RUN < layout.filled:
        round_run(job * RUN, min((job + 1) * RUN, layout.filled), layout, geometry, x, target)
        job = next_job(counter)


@inlined
def round_run(first, last, layout, geometry, x, target):
    """target = rows first … last − 1 and their scales"""
    image, place = divmod(first, layout.image)
    i, j = divmod(place, layout.pitch)
    for row in range(first, last):
        y, z = i - geometry.top, j - geometry.left
        if image < layout.images and 0 <= y and y < geometry.height and 0 <= z and z < geometry.width:
            if enlarged(geometry):
                y, z = y * geometry.rows // geometry.height, z * geometry.columns // geometry.width
            source = ((image * geometry.rows + y) * geometry.columns + z) * geometry.channels
            _round_row(x, source, row, layout, geometry.channels, target)
        else:
            _clear_row(row, layout, geometry.channels, target)
        j += 1
        if j == layout.pitch:
            i, j = i + 1, 0
            if i * layout.pitch == layout.image:
                image, i = image + 1, 0


@inlined
def _round_row(x, source, row, layout, channels, target):
    """Row number `row` and its scales, from `channels` numbers at x[source:]"""
    for k0 in range(0, channels, BLOCK):
        count = min(BLOCK, channels - k0)
        at = row * layout.words + (k0 // 4 if HAS_DOT else k0)
        scale = _round_block(x, source + k0, count, target, at)
        store(target, layout.rows * (layout.words + k0 // BLOCK) + row, scale)


@inlined
def _round_block(x, source, count, target, at):
    """target[at:] = `count` numbers at x[source:] over their scale, rounded → the scale

    Up to three numbers more are written, which meet zeros of the weight.
    """
    whole = count // LANES * LANES
    highest = highest_of(x, source, whole)
    for i in range(whole, count):
        highest = max(highest, np.uint32(np.float32(load(x, source + i)).view(np.uint32) & _POSITIVE))
    scale = np.float32(np.uint32(highest).view(np.float32)) * _SHARE
    inverse = np.float32(1) / scale if scale > 0 else np.float32(0)
    if HAS_DOT:
        for i in range(0, whole, LANES):
            round_vector(x, source + i, inverse, target, 4 * at + i)
        for i in range(whole, count):
            store_byte(target, 4 * at + i, np.uint8(np.int32(np.rint(load(x, source + i) * inverse)) + 128))
        for i in range(count, (count + 3) // 4 * 4):
            store_byte(target, 4 * at + i, np.uint8(0))
    else:
        for i in range(count):
            store(target, at + i, np.rint(load(x, source + i) * inverse))
        for i in range(count, (count + 3) // 4 * 4):
            store(target, at + i, np.float32(0))
    return scale


@intrinsic
def highest_of(typing, x, start, count):
    """The largest of `count` numbers at x[start:], a multiple of LANES, but for their signs: its bits, 0 if there are none"""
    def generate(context, builder, signature, arguments):
        array, start, count = arguments
        data = builder.gep(context.make_array(signature.args[0])(context, builder, array).data, [start])
        positive = ir.Constant(_WORDS, [int(_POSITIVE)] * LANES)
        highest = cgutils.alloca_once_value(builder, ir.Constant(_WORDS, [0] * LANES))
        with cgutils.for_range_slice(builder, INTEGER(0), count, INTEGER(LANES), INTEGER) as (i, _):
            emit_prefetch(builder, builder.gep(data, [builder.add(i, INTEGER(AHEAD))]))
            size = builder.and_(builder.load(vector_pointer(builder, data, i, _WORDS), align=4), positive)
            so_far = builder.load(highest)
            builder.store(builder.select(builder.icmp_unsigned(">", size, so_far), size, so_far), highest)
        largest = f"llvm.vector.reduce.umax.v{LANES}i32"
        largest = cgutils.get_or_insert_function(builder.module, ir.FunctionType(LANE, [_WORDS]), largest)
        return builder.call(largest, [builder.load(highest)])
    return types.uint32(x, types.intp, types.intp), generate


@intrinsic
def round_vector(typing, x, start, inverse, target, byte):
    """Bytes from target's number `byte` on: 128 + x[start + i] · inverse, rounded, for LANES numbers

    Adding 1.5 · 2²³ leaves a whole number in the low bits. (It would round, too, but LLVM makes one instruction of multiplying
    and adding, which rounds some numbers otherwise.)
    """
    def generate(context, builder, signature, arguments):
        x, start, inverse, target, byte = arguments
        x, target = (context.make_array(signature.args[position])(context, builder, array).data
                     for position, array in ((0, x), (3, target)))
        floats = ir.VectorType(FLOAT, LANES)
        numbers = builder.load(vector_pointer(builder, x, start, floats), align=4)
        rint = cgutils.get_or_insert_function(builder.module, ir.FunctionType(floats, [floats]), f"llvm.rint.v{LANES}f32")
        nearest = builder.call(rint, [builder.fmul(numbers, emit_spread(builder, inverse, floats))])
        shifted = builder.fadd(nearest, ir.Constant(floats, [1.5 * 2**23 + 128] * LANES))
        some = builder.trunc(builder.bitcast(shifted, _WORDS), ir.VectorType(BYTE, LANES))
        place = builder.gep(builder.bitcast(target, BYTE.as_pointer()), [byte])
        builder.store(some, builder.bitcast(place, some.type.as_pointer()), align=1)
        return context.get_dummy_value()
    return types.void(x, types.intp, types.float32, target, types.intp), generate


@inlined
def _clear_row(row, layout, channels, target):
    """A row of zeros"""
    if HAS_DOT:
        for i in range(4 * layout.words):
            store_byte(target, 4 * row * layout.words + i, np.uint8(128))
    else:
        for i in range(layout.words):
            store(target, row * layout.words + i, np.float32(0))
    for k0 in range(0, channels, BLOCK):
        store(target, layout.rows * (layout.words + k0 // BLOCK) + row, np.float32(0))
