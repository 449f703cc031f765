"""The running softmax of attention: it takes a block of scores, many rows deep, in as many columns as a tile has.

    m′ = max(m, ⌊maxₛ Pₛ⌉)      f = 2^(m − m′)      l′ = l · f + Σₛ 2^(Pₛ − m′)      P ← 2^(P − m′)      Oᵀ ← Oᵀ · f

m only keeps powers from overflowing; it is rounded to a whole number, so that f is exact and mostly 1, and P in bfloat16
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


class _Writer:
    """What writes code for columns of a flat float32 array that is the first argument of an intrinsic."""
    def __init__(self, shape, context, builder, signature, arguments):
        self.shape, self.builder, self.vector = shape, builder, ir.VectorType(FLOAT, shape.lanes)
        self.memory = context.make_array(signature.args[0])(context, builder, arguments[0]).data

    def pointers(self, start):
        """To the vectors that begin at memory[start]"""
        return [vector_pointer(self.builder, self.memory, self.builder.add(start, INTEGER(j * self.shape.lanes)), self.vector)
                for j in range(self.shape.vectors)]

    def row(self, start, number):
        """The same for a row of those that begin there"""
        return self.pointers(self.builder.add(start, self.builder.mul(number, INTEGER(self.shape.columns))))

    def load(self, pointer):
        return self.builder.load(pointer, align=4)

    def store(self, value, pointer):
        self.builder.store(value, pointer, align=4)

    def variables(self, values):
        """LLVM keeps them in registers."""
        return [cgutils.alloca_once_value(self.builder, value) for value in values]

    def larger(self, old, new):
        """`new` where it is NaN"""
        return self.builder.select(self.builder.fcmp_ordered("<", new, old), old, new)

    def exp2(self, x):
        return emit_exp2(self.builder, lambda a, b, c: multiply_add(self.builder, a, b, c), x)


def make_raise_maximum(shape):
    """→ raise_maximum(memory, scores, count, maximum, total, factor) → whether any f is not 1, for use in kernels.

    All lie in one flat float32 array: `count` rows of shape.columns scores begin at memory[scores]; m, l and f, one number
    for each column, at the others. m becomes m′, l becomes l · f, and f is written.
    """
    @intrinsic
    def raise_maximum(typing, memory, scores, count, maximum, total, factor):
        def generate(context, builder, signature, arguments):
            _, scores, count, maximum, total, factor = arguments
            at = _Writer(shape, context, builder, signature, arguments)
            highest = at.variables([ir.Constant(at.vector, [LOWEST] * shape.lanes)] * shape.vectors)
            with cgutils.for_range(builder, count, intp=INTEGER) as loop:
                for name, pointer in zip(highest, at.row(scores, loop.index)):
                    builder.store(at.larger(builder.load(name), at.load(pointer)), name)
            raised = ir.IntType(shape.lanes)(0)
            for name, m, sum_, f in zip(highest, at.pointers(maximum), at.pointers(total), at.pointers(factor)):
                old = at.load(m)
                new = at.larger(old, emit_rounded(builder, builder.load(name)))
                change = at.exp2(builder.fsub(old, new))
                at.store(new, m)
                at.store(builder.fmul(at.load(sum_), change), sum_)
                at.store(change, f)
                differs = builder.fcmp_unordered("!=", old, new)                 # NaN does
                raised = builder.or_(raised, builder.bitcast(differs, raised.type))
            return builder.icmp_unsigned("!=", raised, raised.type(0))
        return types.boolean(memory, *[types.intp] * 5), generate

    return raise_maximum


def make_powers(shape, narrow=False):
    """→ powers(memory, scores, first, count, maximum, total), for use in kernels.

    Rows first … first + count − 1 of the scores are replaced by P, and their sums are added to l.

    With `narrow` P is left in bfloat16, rows 2 i and 2 i + 1 in the words of row i; `first` and `count` must then be even,
    and rows go in their order.
    """
    rows = 2 if narrow else 1                            # of P that become one

    @intrinsic
    def powers(typing, memory, scores, first, count, maximum, total):
        def generate(context, builder, signature, arguments):
            _, scores, first, count, maximum, total = arguments
            at = _Writer(shape, context, builder, signature, arguments)
            highest = [at.load(m) for m in at.pointers(maximum)]
            sums = at.variables([at.load(sum_) for sum_ in at.pointers(total)])
            start = builder.sdiv(first, INTEGER(rows))
            with cgutils.for_range(builder, builder.sdiv(count, INTEGER(rows)), intp=INTEGER) as loop:
                target = builder.add(start, loop.index)
                source = builder.mul(target, INTEGER(rows))
                sources = zip(*(at.row(scores, builder.add(source, INTEGER(i))) for i in range(rows)))
                for m, sum_, some, destination in zip(highest, sums, sources, at.row(scores, target)):
                    found = [at.exp2(builder.fsub(at.load(pointer), m)) for pointer in some]
                    for power in found:
                        builder.store(builder.fadd(builder.load(sum_), power), sum_)
                    at.store(emit_narrowed(builder, *found) if narrow else found[0], destination)
            for sum_, destination in zip(sums, at.pointers(total)):
                at.store(builder.load(sum_), destination)
            return context.get_dummy_value()

        return types.void(memory, *[types.intp] * 5), generate

    return powers


def make_scale(shape):
    """→ scale(memory, output, count, factor), for use in kernels: `count` rows at memory[output:] times f"""
    @intrinsic
    def scale(typing, memory, output, count, factor):
        def generate(context, builder, signature, arguments):
            _, output, count, factor = arguments
            at = _Writer(shape, context, builder, signature, arguments)
            factors = [at.load(f) for f in at.pointers(factor)]
            with cgutils.for_range(builder, count, intp=INTEGER) as loop:
                for f, pointer in zip(factors, at.row(output, loop.index)):
                    at.store(builder.fmul(at.load(pointer), f), pointer)
            return context.get_dummy_value()

        return types.void(memory, *[types.intp] * 3), generate

    return scale
