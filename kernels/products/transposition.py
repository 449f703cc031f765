"""Transposing blocks of L × L numbers in vector registers of L lanes, where one number at a time would take L² moves.

    for n = L/2, ..., 2, 1:      a b   →   a c     blocks of n × n: the two off the diagonal change places
                                 c d       b d

After log₂ L rounds every number is where it belongs: number j of vector i has become number i of vector j (Eklundh
1972, "A fast computer method for matrix transposing"). Each round is one shuffle of two vectors for each vector.
"""
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..codegen.bfloat16 import emit_narrowed, emit_narrowed_run
from .microkernel import FLOAT, INTEGER, LANE, vector_pointer


def emit_transposed(builder, rows):
    """Write LLVM code for the columns of a square matrix that is given as vectors, one for each row."""
    lanes = len(rows)
    distance = lanes // 2
    while distance:
        upper = [lanes + j - distance if j & distance else j for j in range(lanes)]      # beyond `lanes`: of the second
        lower = [lanes + j if j & distance else j + distance for j in range(lanes)]
        masks = [ir.Constant(ir.VectorType(LANE, lanes), order) for order in (upper, lower)]
        for i in range(lanes):
            if not i & distance:
                pair = rows[i], rows[i + distance]
                rows[i], rows[i + distance] = (builder.shuffle_vector(*pair, mask) for mask in masks)
        distance //= 2
    return rows


def make_transpose(lanes, narrow=None):
    """→ transpose(source, s, s_row, factor, target, t, t_row), for use in kernels; source and target are float32.

        target[t + j · t_row + i] = factor · source[s + i · s_row + j]        i, j < lanes

    With `narrow` what is moved are words of two bfloat16, and the target may be memory of any type: word j of a row is
    made of its numbers 2 j and 2 j + 1 ("in rows"), or row i of words of rows 2 i and 2 i + 1 ("in columns").
    """
    vector = ir.VectorType(FLOAT, lanes)

    @intrinsic
    def transpose(typing, source, s, s_row, factor, target, t, t_row):
        def generate(context, builder, signature, arguments):
            source, s, s_row, factor, target, t, t_row = arguments
            source, target = (context.make_array(signature.args[position])(context, builder, array).data
                              for position, array in ((0, source), (4, target)))
            target = builder.bitcast(target, FLOAT.as_pointer())
            factors = builder.insert_element(ir.Constant(vector, ir.Undefined), factor, LANE(0))
            factors = builder.shuffle_vector(factors, factors, ir.Constant(ir.VectorType(LANE, lanes), [0] * lanes))

            def at(base, start, row, i, further=0):
                offset = builder.add(builder.add(start, builder.mul(row, INTEGER(i))), INTEGER(further))
                return vector_pointer(builder, base, offset, vector)

            def given(i, further):
                return builder.fmul(factors, builder.load(at(source, s, s_row, i, further), align=4))

            if narrow == "in rows":
                rows = [emit_narrowed_run(builder, given(i, 0), given(i, lanes)) for i in range(lanes)]
            elif narrow == "in columns":
                rows = [emit_narrowed(builder, given(2 * i, 0), given(2 * i + 1, 0)) for i in range(lanes)]
            else:
                rows = [given(i, 0) for i in range(lanes)]
            for j, column in enumerate(emit_transposed(builder, rows)):
                builder.store(column, at(target, t, t_row, j), align=4)
            return context.get_dummy_value()

        size = types.intp
        return types.void(source, size, size, types.float32, target, size, size), generate

    return transpose


def make_pairs(shape):
    """→ pair_rows(source, s, s_row, target, t), for use in kernels; source is float32, the target memory of any type.

    `columns` words of two bfloat16, of rows at source[s :] and source[s + s_row :]: word j of the target, from its word t
    on, is made of number j of either.
    """
    vector = ir.VectorType(FLOAT, shape.lanes)

    @intrinsic
    def pair_rows(typing, source, s, s_row, target, t):
        def generate(context, builder, signature, arguments):
            source, target = (builder.bitcast(context.make_array(signature.args[i])(context, builder, arguments[i]).data,
                                              FLOAT.as_pointer()) for i in (0, 3))
            _, s, s_row, _, t = arguments
            for first in range(0, shape.columns, shape.lanes):
                starts = (builder.add(start, INTEGER(first)) for start in (s, builder.add(s, s_row)))
                even, odd = (builder.load(vector_pointer(builder, source, start, vector), align=4) for start in starts)
                place = vector_pointer(builder, target, builder.add(t, INTEGER(first)), vector)
                builder.store(emit_narrowed(builder, even, odd), place, align=4)
            return context.get_dummy_value()
        return types.void(source, types.intp, types.intp, target, types.intp), generate

    return pair_rows
