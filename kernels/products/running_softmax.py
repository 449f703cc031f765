"""The running softmax of attention: one step takes a block of scores, many rows deep, in as many columns as a tile has.

    m′ = max(m, ⌊maxₛ Pₛ⌉)      l′ = l · 2^(m − m′) + Σₛ 2^(Pₛ − m′)      P ← 2^(P − m′)

m only keeps powers from overflowing; it is rounded to a whole number, so that 2^(m − m′) is exact, and P in bfloat16
is the same whichever block a key is in. Every lane of the vectors is a query of its own, so no step goes across lanes.
Like the register tile it is written as LLVM vector code: m and l then stay in registers while s runs.
Milakov & Gimelshein 2018, arXiv:1805.02867
"""
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..codegen.bfloat16 import emit_narrowed
from ..codegen.exponential import emit_exp2, emit_rounded
from .microkernel import FLOAT, INTEGER, multiply_add, vector_pointer

LOWEST = -1e30                                           # below every score, and finite: inf − inf would be NaN


def make_softmax_step(shape, narrow=False):
    """→ step(memory, scores, count, maximum, total, factor), for use in kernels.

    All five lie in one flat float32 array: `count` rows of shape.columns scores begin at memory[scores]; m, l and a
    place for 2^(m − m′), one number for each column, at the others. Scores, m and l are replaced.

    With `narrow` P is left in bfloat16, rows 2 i and 2 i + 1 in the words of row i; `count` must then be even.
    """
    vector = ir.VectorType(FLOAT, shape.lanes)

    @intrinsic
    def step(typing, memory, scores, count, maximum, total, factor):
        def generate(context, builder, signature, arguments):
            _, scores, count, maximum, total, factor = arguments
            memory = context.make_array(signature.args[0])(context, builder, arguments[0]).data

            def pointers(start):                         # to the vectors that begin at memory[start]
                return [vector_pointer(builder, memory, builder.add(start, INTEGER(j * shape.lanes)), vector)
                        for j in range(shape.vectors)]

            def row(s):
                return pointers(builder.add(scores, builder.mul(s, INTEGER(shape.columns))))

            def variables(start):                        # LLVM keeps them in registers
                names = [cgutils.alloca_once(builder, vector) for _ in range(shape.vectors)]
                for name, pointer in zip(names, pointers(start)):
                    builder.store(builder.load(pointer, align=4), name)
                return names

            def exp2(x):
                return emit_exp2(builder, lambda a, b, c: multiply_add(builder, a, b, c), x)

            highest = [cgutils.alloca_once_value(builder, ir.Constant(vector, [LOWEST] * shape.lanes))
                       for _ in range(shape.vectors)]
            sums = variables(total)
            with cgutils.for_range(builder, count, intp=INTEGER) as loop:
                for name, pointer in zip(highest, row(loop.index)):
                    new, old = builder.load(pointer, align=4), builder.load(name)
                    builder.store(builder.select(builder.fcmp_ordered("<", new, old), old, new), name)
            for name, sum_, m, f in zip(highest, sums, pointers(maximum), pointers(factor)):
                new, old = emit_rounded(builder, builder.load(name)), builder.load(m, align=4)
                new = builder.select(builder.fcmp_ordered("<", new, old), old, new)
                change = exp2(builder.fsub(old, new))
                builder.store(new, m, align=4)
                builder.store(new, name)
                builder.store(change, f, align=4)
                builder.store(builder.fmul(builder.load(sum_), change), sum_)
            rows = 2 if narrow else 1                    # of P that become one
            with cgutils.for_range(builder, builder.sdiv(count, INTEGER(rows)), intp=INTEGER) as loop:
                first = builder.mul(loop.index, INTEGER(rows))
                sources = zip(*(row(builder.add(first, INTEGER(i))) for i in range(rows)))
                for name, sum_, source, target in zip(highest, sums, sources, row(loop.index)):
                    powers = [exp2(builder.fsub(builder.load(pointer, align=4), builder.load(name)))
                              for pointer in source]
                    for power in powers:
                        builder.store(builder.fadd(builder.load(sum_), power), sum_)
                    builder.store(emit_narrowed(builder, *powers) if narrow else powers[0], target, align=4)
            for sum_, destination in zip(sums, pointers(total)):
                builder.store(builder.load(sum_), destination, align=4)
            return context.get_dummy_value()

        return types.void(memory, *[types.intp] * 5), generate

    return step
