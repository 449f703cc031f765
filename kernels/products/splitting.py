"""float32 as a sum of three bfloat16, so that tile registers can multiply it, 13 times as fast as vectors multiply float32.

    x = x₁ + x₂ + x₃        x₁ = bf16(x),  x₂ = bf16(x − x₁),  x₃ = bf16(x − x₁ − x₂): 8 bits each, and float32 has 24
    a b ≈ a₁ b₁ + a₁ b₂ + a₂ b₁ + a₂ b₂ + a₁ b₃ + a₃ b₁

What is left out, a₂ b₃ + a₃ b₂ + a₃ b₃, is at most 2⁻²³ of the product: no more than float32 would lose by rounding. (Of two
parts each, in half the time, about 2⁻¹⁸ is left out; gradients of whole models were 1.5e-5 off then.) Parts below 2⁻¹²⁶,
which only numbers below 2⁻¹¹⁰ have, are lost. Where x is infinite, x − x₁ isn't a number, and neither is what is multiplied
by it.

Henry, Tang & Heinecke 2019, "Leveraging the bfloat16 artificial intelligence datatype for higher-precision computations",
arXiv:1904.06376.
"""
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..codegen.bfloat16 import emit_narrowed_run, emit_pair
from ..codegen.compiling import inlined
from ..codegen.memory import store_half
from .microkernel import FLOAT, INTEGER, LANE, LANES, PRODUCT, emit_prefetch, vector_pointer
from .transposition import emit_transposed

PARTS = 3
AHEAD = 10                                               # vectors: numbers that far ahead are fetched, as measured
COLUMNS, RUN = PRODUCT.columns, 2 * LANES                # numbers of a row of a panel; that are split at once
_ZERO = np.uint16(0)
_VECTOR, _INTEGERS = ir.VectorType(FLOAT, LANES), ir.VectorType(LANE, LANES)


def _constant(value):
    return ir.Constant(_INTEGERS, [value] * LANES)


def _emit_split(builder, x):
    """Write LLVM code for (x₁, x₂, x − x₁ − x₂): ties are rounded away from zero, differences exact, the last is float32."""
    parts = []
    for _ in range(PARTS - 1):
        bits = builder.add(builder.bitcast(x, _INTEGERS), _constant(0x8000))
        parts.append(builder.bitcast(builder.and_(bits, _constant(0xffff0000)), _VECTOR))
        x = builder.fsub(x, parts[-1])
    return *parts, x


def _pointer(context, builder, signature, arguments, position):
    """To the number of an array that the argument after it says"""
    data = context.make_array(signature.args[position])(context, builder, arguments[position]).data
    return builder.bitcast(builder.gep(data, [arguments[position + 1]]), _VECTOR.as_pointer())


@intrinsic
def _split_vectors(typing, source, start, memory, target, piece):
    """memory[target:] = RUN numbers' x₁ as words, memory[target + piece:] their x₂, and so on"""
    def generate(context, builder, signature, arguments):
        numbers = _pointer(context, builder, signature, arguments, 0)
        words = _pointer(context, builder, signature, arguments, 2)
        for i in range(2):
            emit_prefetch(builder, builder.gep(numbers, [INTEGER(AHEAD + i)]))
        pair = [_emit_split(builder, builder.load(builder.gep(numbers, [INTEGER(i)]), align=4)) for i in range(2)]
        for place, halves in enumerate(zip(*pair)):
            offset = builder.mul(arguments[4], INTEGER(place))
            builder.store(emit_narrowed_run(builder, *halves), vector_pointer(
                builder, builder.bitcast(words, FLOAT.as_pointer()), offset, _VECTOR), align=4)
        return context.get_dummy_value()
    return types.void(source, types.intp, memory, types.intp, types.intp), generate


@intrinsic
def _split_rows(typing, source, start, step, memory, target, piece):
    """memory[target:], memory[target + piece:], ... = words of x₁, of x₂, ... of two rows of COLUMNS numbers, `step` apart"""
    def generate(context, builder, signature, arguments):
        numbers = _pointer(context, builder, signature, arguments, 0)
        words = builder.bitcast(_pointer(context, builder, signature, arguments, 3), FLOAT.as_pointer())
        below = builder.bitcast(builder.gep(builder.bitcast(numbers, FLOAT.as_pointer()), [arguments[2]]), numbers.type)
        for j in range(PRODUCT.vectors):
            rows = [_emit_split(builder, builder.load(builder.gep(row, [INTEGER(j)]), align=4)) for row in (numbers, below)]
            for place, (even, odd) in enumerate(zip(*rows)):
                offset = builder.add(builder.mul(arguments[5], INTEGER(place)), INTEGER(j * LANES))
                builder.store(emit_pair(builder, even, odd), vector_pointer(builder, words, offset, _VECTOR), align=4)
        return context.get_dummy_value()
    return types.void(source, types.intp, types.intp, memory, types.intp, types.intp), generate


@intrinsic
def turn_split(typing, source, start, step, memory, target, apart, piece):
    """memory[target + j · apart + i] = word of x₁ of numbers j of rows 2 i and 2 i + 1, memory[... + piece] of their x₂, ...

    j, i < LANES; rows are `step` apart in the source.
    """
    def generate(context, builder, signature, arguments):
        numbers = builder.bitcast(_pointer(context, builder, signature, arguments, 0), FLOAT.as_pointer())
        words = builder.bitcast(_pointer(context, builder, signature, arguments, 3), FLOAT.as_pointer())
        _, _, step, _, _, apart, piece = arguments
        rows = [_emit_split(builder, builder.load(
            vector_pointer(builder, numbers, builder.mul(step, INTEGER(i)), _VECTOR), align=4)) for i in range(2 * LANES)]
        for place in range(PARTS):
            pairs = [emit_pair(builder, rows[2 * i][place], rows[2 * i + 1][place]) for i in range(LANES)]
            for j, column in enumerate(emit_transposed(builder, pairs)):
                offset = builder.add(builder.mul(piece, INTEGER(place)), builder.mul(apart, INTEGER(j)))
                builder.store(column, vector_pointer(builder, words, offset, _VECTOR), align=4)
        return context.get_dummy_value()
    return types.void(source, types.intp, types.intp, memory, types.intp, types.intp, types.intp), generate


@inlined
def split_run(source, start, memory, target, count, piece):
    """memory[target:] = words of x₁ of `count` numbers, a multiple of RUN, memory[target + piece:] of their x₂, ..."""
    for i in range(0, count, RUN):
        _split_vectors(source, start + i, memory, target + i // 2, piece)


@inlined
def split_panel(source, start, step, memory, target, words, piece):
    """memory[target:] = so many rows of words of x₁, of rows of COLUMNS numbers from source[start] on, each `step` further;
    memory[target + piece:] of their x₂, ..."""
    for k in range(words):
        _split_rows(source, start + 2 * k * step, step, memory, target + k * COLUMNS, piece)


@inlined
def zero_run(memory, target, count, piece):
    """The same of zeros"""
    for part in range(PARTS):
        for i in range(count):
            store_half(memory, 2 * (target + part * piece) + i, _ZERO)
