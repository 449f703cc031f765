"""Sums over pixels, channel by channel, of how far numbers are from a centre: what means and variances are made of.

    sums[c] = Σₚ d        squares[c] = Σₚ d²        d = x[p, c] − centre[c]

A few vectors of channels at a time stay in registers with both of their sums while the pixels go by, so that a number is read
once and nothing else is.
"""
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .codegen.compiling import inlined
from .codegen.memory import load, store
from .products.microkernel import FLOAT, INTEGER, LANES, multiply_add, registers, vector_pointer

VECTORS = registers()[1] // 4                            # at once: three registers each, of 32 or 16
_VECTOR = ir.VectorType(FLOAT, LANES)


def make_deviations(vectors):
    """→ add(x, start, step, pixels, memory, centre, sums, squares), for use in kernels: see above, for so many vectors.

    Pixels begin at x[start], `step` numbers apart; the rest lies in `memory`. pixels ≥ 1
    """
    @intrinsic
    def add(typing, x, start, step, pixels, memory, centre, sums, squares):
        def generate(context, builder, signature, arguments):
            _, start, step, pixels, _, *places = arguments
            x, memory = (context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in (0, 4))

            def at(base, offset, i):
                return vector_pointer(builder, base, builder.add(offset, INTEGER(i * LANES)), _VECTOR)

            centres = [builder.load(at(memory, places[0], i), align=4) for i in range(vectors)]
            zeros = ir.Constant(_VECTOR, [0.0] * LANES)
            before, loop, after = builder.block, builder.append_basic_block("pixel"), builder.append_basic_block("after")
            builder.branch(loop)
            builder.position_at_end(loop)
            pixel, source = builder.phi(INTEGER), builder.phi(INTEGER)
            totals = [builder.phi(_VECTOR) for _ in range(2 * vectors)]
            found = []
            for i, (total, square) in enumerate(zip(totals[::2], totals[1::2])):
                d = builder.fsub(builder.load(at(x, source, i), align=4), centres[i])
                found += [builder.fadd(total, d), multiply_add(builder, d, d, square)]
            following = builder.add(pixel, INTEGER(1))
            for phi, first, later in ((pixel, INTEGER(0), following), (source, start, builder.add(source, step)),
                                      *((total, zeros, value) for total, value in zip(totals, found))):
                phi.add_incoming(first, before)
                phi.add_incoming(later, loop)
            builder.cbranch(builder.icmp_signed("<", following, pixels), loop, after)
            builder.position_at_end(after)
            for i in range(vectors):
                for place, value in zip(places[1:], found[2 * i:]):
                    builder.store(value, at(memory, place, i), align=4)
            return context.get_dummy_value()
        return types.void(x, *[types.intp] * 3, memory, *[types.intp] * 3), generate

    return add


_several, _one = make_deviations(VECTORS), make_deviations(1)


@inlined
def add_deviations(x, start, pixels, channels, memory, centre, sums, squares):
    """memory[sums:] and memory[squares:] = Σ d and Σ d² of each of an image's channels, for `pixels` pixels from x[start] on"""
    whole, some = channels // LANES * LANES, channels // (VECTORS * LANES) * (VECTORS * LANES)
    for c in range(0, some, VECTORS * LANES):
        _several(x, start + c, channels, pixels, memory, centre + c, sums + c, squares + c)
    for c in range(some, whole, LANES):
        _one(x, start + c, channels, pixels, memory, centre + c, sums + c, squares + c)
    for c in range(whole, channels):
        total = square = np.float32(0)
        for p in range(pixels):
            d = load(x, start + p * channels + c) - load(memory, centre + c)
            total += d
            square += d * d
        store(memory, sums + c, total)
        store(memory, squares + c, square)
