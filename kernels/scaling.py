"""What group norm makes of each number, in vectors: z = (x − mean) · scale + shift, or silu(z) = z / (1 + e⁻ᶻ).

LLVM writes such a loop in vectors of half the length on some processors, and can't write past the caches.
"""
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .codegen.exponential import emit_exp
from .codegen.streaming import mark_streamed
from .products.microkernel import FLOAT, LANES, multiply_add, vector_pointer

_VECTOR = ir.VectorType(FLOAT, LANES)


def make_scaling(with_silu, streamed):
    """→ scale_vector(x, source, memory, mean, scale, shift, y, target), for use in kernels: LANES numbers, see above.

    Means, scales and shifts lie in memory[mean:] and so on. `streamed`: past the caches, see streaming.py
    """
    @intrinsic
    def scale_vector(typing, x, source, memory, mean, scale, shift, y, target):
        def generate(context, builder, signature, arguments):
            def at(array, offset):
                data = context.make_array(signature.args[array])(context, builder, arguments[array]).data
                return vector_pointer(builder, data, arguments[offset], _VECTOR)

            def fused(a, b, c):
                return multiply_add(builder, a, b, c)

            x, mean, scale, shift = (builder.load(at(*place), align=4) for place in ((0, 1), (2, 3), (2, 4), (2, 5)))
            z = fused(builder.fsub(x, mean), scale, shift)
            if with_silu:
                one = ir.Constant(_VECTOR, [1.0] * LANES)
                z = builder.fdiv(z, builder.fadd(emit_exp(builder, fused, builder.fneg(z)), one))
            store = builder.store(z, at(6, 7), align=4)
            if streamed:
                mark_streamed(builder, store)
            return context.get_dummy_value()
        size = types.intp
        return types.void(x, size, memory, size, size, size, y, size), generate

    return scale_vector
