"""The running softmax of attention: one step takes a block of scores, many rows deep, in as many columns as a tile has.

    m′ = max(m, maxₛ Pₛ)      l′ = l · 2^(m − m′) + Σₛ 2^(Pₛ − m′)      P ← 2^(P − m′)

Every lane of the vectors is a query of its own, so no step goes across lanes. Like the register tile it is written as
LLVM vector code: m and l then stay in registers while s runs.          Milakov & Gimelshein 2018, arXiv:1805.02867
"""
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .exponential import emit_exp2
from .microkernel import FLOAT, INTEGER, multiply_add, vector_pointer


def make_softmax_step(shape):
    """→ step(memory, scores, count, maximum, total, factor), for use in kernels.

    All five lie in one flat float32 array: `count` rows of shape.columns scores begin at memory[scores]; m, l and a
    place for 2^(m − m′), one number for each column, at the others. Scores, m and l are replaced.
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

            highest, sums = variables(maximum), variables(total)
            with cgutils.for_range(builder, count, intp=INTEGER) as loop:
                for name, pointer in zip(highest, row(loop.index)):
                    new, old = builder.load(pointer, align=4), builder.load(name)
                    builder.store(builder.select(builder.fcmp_ordered("<", new, old), old, new), name)
            for name, sum_, m, f in zip(highest, sums, pointers(maximum), pointers(factor)):
                change = exp2(builder.fsub(builder.load(m, align=4), builder.load(name)))
                builder.store(builder.load(name), m, align=4)
                builder.store(change, f, align=4)
                builder.store(builder.fmul(builder.load(sum_), change), sum_)
            with cgutils.for_range(builder, count, intp=INTEGER) as loop:
                for name, sum_, pointer in zip(highest, sums, row(loop.index)):
                    power = exp2(builder.fsub(builder.load(pointer, align=4), builder.load(name)))
                    builder.store(power, pointer, align=4)
                    builder.store(builder.fadd(builder.load(sum_), power), sum_)
            for sum_, l in zip(sums, pointers(total)):
                builder.store(builder.load(sum_), l, align=4)
            return context.get_dummy_value()

        return types.void(memory, *[types.intp] * 5), generate

    return step
