"""Winograd's minimal filtering F(4×4, 3×3): 16 outputs of a 3×3 convolution from 36 products instead of 144.

    Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A          Lavin & Gray 2015, arXiv:1509.09308; Winograd 1980

d is a 6×6 patch of the input, g the 3×3 kernel, Y the 4×4 outputs; ⊙ multiplies element by element and, over the input
channels, sums. So each of the 36 places ξ of a transformed patch is a matrix product of its own:

    d, all tiles          V[ξ] (tiles, I)          M[ξ] = V[ξ] U[ξ]          Y, all tiles
      ┌──────┐  BᵀdB        ┌──────┐┐┐               ┌───┐┐┐       AᵀMA        ┌────┐
      │ 6×6  │   →          │      │││ 36      ×      │   │││ 36     →          │4×4 │
      └──────┘              └──────┘││               └───┘││                   └────┘
                                           U[ξ] (I, O) = G g Gᵀ

It is exact algebra: the polynomial product is evaluated at five points and ∞ and interpolated from there (Toom 1963).
The customary points 0, ±1, ±2 lose some digits; 0, ±3/4, ±3/2 lose 5 times fewer, and are exact in binary. (On the
choice of points: Barabasz et al. 2018, arXiv:1803.10986.)

Its smallest case, by hand: docs/notes/14-latent-diffusion.md. The three transforms below are plain
arithmetic on six, three and six values. On NumPy arrays they are the definition; the compiled kernel is made by running
them on LLVM vectors, one channel in each lane.
"""
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..codegen.bfloat16 import emit_pair, emit_widened
from .microkernel import FLOAT, INTEGER, vector_pointer

OUTPUTS, KERNEL = 4, 3                                   # of one tile, in each direction
PATCH = OUTPUTS + KERNEL - 1
P, Q = 3 / 4, 3 / 2                                      # the points are 0, P, −P, Q, −Q, ∞
P2, Q2 = P * P, Q * Q


def input_transform(d):
    """Bᵀ d: coefficients of d at the points      6 values → 6 values"""
    even_p, odd_p = d[4] - d[2] * Q2, (d[3] - d[1] * Q2) * P
    even_q, odd_q = d[4] - d[2] * P2, (d[3] - d[1] * P2) * Q
    at_zero = d[0] * (P2 * Q2) - d[2] * (P2 + Q2) + d[4]
    at_infinity = d[1] * (P2 * Q2) - d[3] * (P2 + Q2) + d[5]
    return at_zero, even_p + odd_p, even_p - odd_p, even_q + odd_q, even_q - odd_q, at_infinity


def weight_transform(g):
    """G g: the kernel as a polynomial, evaluated at the points; ∞ is its leading coefficient      3 values → 6 values

    The denominators Π (point − other points) of the interpolation are divided out here, where it costs least.
    """
    p, q = 1 / (2 * P2 * (P2 - Q2)), 1 / (2 * Q2 * (Q2 - P2))
    even_p, odd_p = (g[0] + g[2] * P2) * p, g[1] * (P * p)
    even_q, odd_q = (g[0] + g[2] * Q2) * q, g[1] * (Q * q)
    return g[0] * (1 / (P2 * Q2)), even_p + odd_p, even_p - odd_p, even_q + odd_q, even_q - odd_q, g[2]


def output_transform(m):
    """Aᵀ m: from the products at the points to the outputs      6 values → 4 values"""
    even_p, odd_p = m[1] + m[2], m[1] - m[2]
    even_q, odd_q = m[3] + m[4], m[3] - m[4]
    return (m[0] + even_p + even_q, odd_p * P + odd_q * Q, even_p * P2 + even_q * Q2,
            odd_p * (P * P2) + odd_q * (Q * Q2) + m[5])


def output_gradient(y):
    """A y, by which the gradient of the outputs goes back to the products: `output_transform` transposed      4 → 6 values"""
    even_p, odd_p = y[0] + y[2] * P2, y[1] * P + y[3] * (P * P2)
    even_q, odd_q = y[0] + y[2] * Q2, y[1] * Q + y[3] * (Q * Q2)
    return y[0], even_p + odd_p, even_p - odd_p, even_q + odd_q, even_q - odd_q, y[3]


def weight_gradient(u):
    """Gᵀ u, by which that of the transformed kernel goes back to the kernel: `weight_transform` transposed      6 → 3 values"""
    p, q = 1 / (2 * P2 * (P2 - Q2)), 1 / (2 * Q2 * (Q2 - P2))
    even_p, odd_p = (u[1] + u[2]) * p, (u[1] - u[2]) * (P * p)
    even_q, odd_q = (u[3] + u[4]) * q, (u[3] - u[4]) * (Q * q)
    return u[0] * (1 / (P2 * Q2)) + even_p + even_q, odd_p + odd_q, even_p * P2 + even_q * Q2 + u[5]


class Vector:
    """A vector of float32 in LLVM code under construction, with the arithmetic that the transforms need."""

    def __init__(self, builder, value):
        self.builder, self.value = builder, value

    def __add__(self, other):
        return Vector(self.builder, self.builder.fadd(self.value, other.value, flags=("contract",)))

    def __sub__(self, other):
        return Vector(self.builder, self.builder.fsub(self.value, other.value, flags=("contract",)))

    def __mul__(self, number):
        factor = ir.Constant(self.value.type, [number] * self.value.type.count)
        return Vector(self.builder, self.builder.fmul(self.value, factor, flags=("contract",)))


def make_transform(transform, inputs, lanes, half=None, pairs=False):
    """→ apply(source, s, s_row, s_column, target, t, t_row, t_column), for use in kernels: T x Tᵀ, lane by lane.

    `transform` takes `inputs` values; x[i, j] is the vector at source[s + i · s_row + j · s_column], and the results go
    to the target likewise. With `half`, the source is seen as words of two bfloat16, of which the lower (0) or the upper
    (1) ones are taken. With `pairs`, there is one more argument, `other`, the start of a second x; results of both are
    rounded to bfloat16 and stored as words of two. Starts and strides count words of 32 bits in any case.
    """
    vector = ir.VectorType(FLOAT, lanes)

    def generate(context, builder, signature, arguments):
        def pointer(array, start, row, column, i, j):    # positions of arguments, then where x[i, j] is
            data = context.make_array(signature.args[array])(context, builder, arguments[array]).data
            offset = arguments[start]
            for index, stride in ((i, arguments[row]), (j, arguments[column])):
                offset = builder.add(offset, builder.mul(stride, INTEGER(index)))
            return vector_pointer(builder, builder.bitcast(data, FLOAT.as_pointer()), offset, vector)

        def transformed(start):
            def given(i, j):
                value = builder.load(pointer(0, start, 2, 3, i, j), align=4)
                return Vector(builder, value if half is None else emit_widened(builder, value, half))

            columns = [transform([given(i, j) for i in range(inputs)]) for j in range(inputs)]
            return [transform([column[i] for column in columns]) for i in range(len(columns[0]))]

        results, others = transformed(1), transformed(8) if pairs else None
        for i, row in enumerate(results):
            for j, result in enumerate(row):
                value = emit_pair(builder, result.value, others[i][j].value) if pairs else result.value
                builder.store(value, pointer(4, 5, 6, 7, i, j), align=4)
        return context.get_dummy_value()

    def signature(source, target, *more):
        size = types.intp
        return types.void(source, size, size, size, target, size, size, size, *more)

    @intrinsic
    def apply(typing, source, s, s_row, s_column, target, t, t_row, t_column):
        return signature(source, target), generate

    @intrinsic
    def apply_to_pairs(typing, source, s, s_row, s_column, target, t, t_row, t_column, other):
        return signature(source, target, types.intp), generate

    return apply_to_pairs if pairs else apply
