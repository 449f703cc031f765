"""The register tile for bytes: sums of whole numbers, scaled when they leave the registers.

    C[i, j] (+)= s_i t_j (Σₖ (A[i, k] − 128) · B[k, j])        A from 0 to 255, B from −127 to 127, k < 4 · words

As in microkernel.py R × V vectors of sums stay in registers, here of 32-bit whole numbers; a step takes a word of four
bytes of each of R rows of A, and V vectors of such words of B. VNNI makes four multiply-adds in each lane of that: it wants
one side without a sign, hence the 128, whose part −128 Σₖ B[k, j] is a row of whole numbers before each block of B, from
which sums start.

Where the processor has no such instruction, B's bytes are taken out of their words as float32, and A holds float32 from −127
to 127. Sums of a block are below 2²⁴, and so the same whole numbers.
"""
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..environment import target
from .microkernel import FLOAT, INTEGER, LANE, LANES, multiply_add, vector_pointer

# Only features are asked, not a CPU's name: an instruction that the target lacks would abort the process.
HAS_DOT = {16: "+avx512vnni", 8: "+avxvnni"}.get(LANES) in target()[1].split(",")


def emit_dot(builder, a, b, c):
    """Write LLVM code for c + Σ aᵢ bᵢ, i < 4, in vectors of words: a four bytes from 0 to 255, b from −128 to 127."""
    name = f"llvm.x86.avx512.vpdpbusd.{32 * c.type.count}"
    dot = cgutils.get_or_insert_function(builder.module, ir.FunctionType(c.type, [c.type] * 3), name)
    return builder.call(dot, [c, a, b])


def emit_byte(builder, words, number):
    """Write LLVM code for byte `number` of each word of a vector, from −128 to 127, as float32."""
    def constant(value):
        return ir.Constant(words.type, [value] * words.type.count)

    bits = builder.ashr(builder.shl(words, constant(24 - 8 * number)), constant(24))
    return builder.sitofp(bits, ir.VectorType(FLOAT, words.type.count))


def emit_scaled(builder, total, scale, t, old):
    """Write LLVM code for old + (total · scale) · t in vectors; total: whole numbers or float32"""
    total = builder.sitofp(total, scale.type) if isinstance(total.type.element, ir.IntType) else total
    return multiply_add(builder, builder.fmul(total, scale), t, old)


def emit_spread(builder, scalar, vector):
    """Write LLVM code for a vector of that type, all of whose lanes are `scalar`."""
    undefined = ir.Constant(vector, ir.Undefined)
    first_lane = ir.Constant(ir.VectorType(LANE, vector.count), [0] * vector.count)
    return builder.shuffle_vector(builder.insert_element(undefined, scalar, LANE(0)), undefined, first_lane)


def make_int8_tile(shape):
    """→ tile(x, a, row_stride, scales, scale_stride, memory, c, c_stride, b, start, outputs, words, accumulate), in kernels.

    A and its scales lie in `x`, C in `memory`, both flat float32; B, its first row and its scales in `b`, flat int32:

        A[i, 4 k : 4 k + 4] = x[a + i · row_stride + k]                   as four bytes, or four float32 (see above)
        s_i = x[scales + i · scale_stride]                                C[i, :] = memory[c + i · c_stride :]
        B[4 k : 4 k + 4, :] = b[start + (k + 1) · columns :]              as bytes; −128 Σ is b[start :]
        t = b[outputs :]                                                  float32

    `words` ≥ 1 of each row are multiplied, and added to C if `accumulate`, else C is overwritten. Nothing is checked.
    """
    floats, integers = ir.VectorType(FLOAT, shape.lanes), ir.VectorType(LANE, shape.lanes)
    cells = [(i, j) for i in range(shape.rows) for j in range(shape.vectors)]

    def row_of(builder, base, offset, vector):           # `columns` words from there on
        return [builder.load(vector_pointer(builder, base, builder.add(offset, INTEGER(j * shape.lanes)), vector), align=4)
                for j in range(shape.vectors)]

    def by_words(builder, A, stride, sums, k, bs):
        for i in range(shape.rows):
            word = builder.load(builder.gep(A, [builder.add(builder.mul(stride, INTEGER(i)), k)]), align=4)
            some = emit_spread(builder, word, integers)
            for j in range(shape.vectors):
                sums[i, j] = emit_dot(builder, some, bs[j], sums[i, j])

    def by_bytes(builder, A, stride, sums, k, bs):
        A = builder.bitcast(A, FLOAT.as_pointer())
        for number in range(4):
            wide = [emit_byte(builder, b, number) for b in bs]
            at = builder.add(builder.mul(k, INTEGER(4)), INTEGER(number))
            for i in range(shape.rows):
                one = builder.load(builder.gep(A, [builder.add(builder.mul(stride, INTEGER(i)), at)]), align=4)
                some = emit_spread(builder, one, floats)
                for j in range(shape.vectors):
                    sums[i, j] = multiply_add(builder, some, wide[j], sums[i, j])

    def generate(context, builder, signature, arguments):
        x, a, stride, scales, scale_stride, memory, c, c_stride, b, start, outputs, words, accumulate = arguments
        X, C, B = (context.make_array(signature.args[position])(context, builder, array).data
                   for position, array in ((0, x), (5, memory), (8, b)))
        A, S, C = builder.bitcast(builder.gep(X, [a]), LANE.as_pointer()), builder.gep(X, [scales]), builder.gep(C, [c])
        before, loop, after = builder.block, builder.append_basic_block("k"), builder.append_basic_block("store")
        if HAS_DOT:
            corrections = row_of(builder, B, start, integers)
            begin = {(i, j): corrections[j] for i, j in cells}
        else:
            begin = {ij: ir.Constant(floats, [0.0] * shape.lanes) for ij in cells}
        builder.branch(loop)

        builder.position_at_end(loop)
        k = builder.phi(INTEGER)
        sums = {ij: builder.phi(integers if HAS_DOT else floats) for ij in cells}
        updated = dict(sums)
        next_k = builder.add(k, INTEGER(1))
        bs = row_of(builder, B, builder.add(start, builder.mul(next_k, INTEGER(shape.columns))), integers)
        (by_words if HAS_DOT else by_bytes)(builder, A, stride, updated, k, bs)
        k.add_incoming(INTEGER(0), before)
        k.add_incoming(next_k, loop)
        for ij in cells:
            sums[ij].add_incoming(begin[ij], before)
            sums[ij].add_incoming(updated[ij], loop)
        builder.cbranch(builder.icmp_signed("<", next_k, words), loop, after)

        builder.position_at_end(after)
        ts = row_of(builder, B, outputs, floats)
        for i in range(shape.rows):
            scale = builder.load(builder.gep(S, [builder.mul(scale_stride, INTEGER(i))]), align=4)
            scale = emit_spread(builder, scale, floats)
            for j in range(shape.vectors):
                at = builder.add(builder.mul(c_stride, INTEGER(i)), INTEGER(j * shape.lanes))
                cell = vector_pointer(builder, C, at, floats)
                old = builder.select(accumulate, builder.load(cell, align=4), ir.Constant(floats, [0.0] * shape.lanes))
                builder.store(emit_scaled(builder, updated[i, j], scale, ts[j], old), cell, align=4)
        return context.get_dummy_value()

    @intrinsic
    def tile(typing, x, a, row_stride, scales, scale_stride, memory, c, c_stride, b, start, outputs, words, accumulate):
        size = types.intp
        return types.void(x, size, size, size, size, memory, size, size, b, size, size, size, types.boolean), generate

    return tile


def make_scaled_row(shape):
    """→ scaled_row(memory, sums, x, scale, c, b, outputs, accumulate), used in kernels: what leaves the tile, of one row

        C (+)= s t Σ        Σ = memory[sums :], int32     s = x[scale]     t = b[outputs :], float32     C = memory[c :]
    """
    floats, integers = ir.VectorType(FLOAT, shape.lanes), ir.VectorType(LANE, shape.lanes)

    @intrinsic
    def scaled_row(typing, memory, sums, x, scale, c, b, outputs, accumulate):
        def generate(context, builder, signature, arguments):
            memory, sums, x, scale, c, b, outputs, accumulate = arguments
            memory, x, b = (context.make_array(signature.args[position])(context, builder, array).data
                            for position, array in ((0, memory), (2, x), (5, b)))
            s = emit_spread(builder, builder.load(builder.gep(x, [scale]), align=4), floats)
            for j in range(shape.vectors):
                def at(base, start, vector, j=j):
                    return vector_pointer(builder, base, builder.add(start, INTEGER(j * shape.lanes)), vector)
                cell = at(memory, c, floats)
                old = builder.select(accumulate, builder.load(cell, align=4), ir.Constant(floats, [0.0] * shape.lanes))
                total, t = builder.load(at(memory, sums, integers), align=4), builder.load(at(b, outputs, floats), align=4)
                builder.store(emit_scaled(builder, total, s, t, old), cell, align=4)
            return context.get_dummy_value()

        size = types.intp
        return types.void(memory, size, x, size, size, b, size, types.boolean), generate

    return scaled_row
