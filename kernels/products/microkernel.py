"""The register tile: the one piece of code in which nearly all arithmetic of Stable Diffusion takes place.

    C[i, j] (+)= Σₖ A[i, k] · B[k, j]        i < R rows, j < V vectors of L lanes

The R × V sums stay in vector registers while k runs. Each step loads V vectors of B and broadcasts R scalars of A: it
makes R · V multiply-adds of L lanes from R + V loads, and the larger the tile, the less the memory has to deliver.
Goto & van de Geijn 2008, "Anatomy of high-performance matrix multiplication".

The tile is written as LLVM vector code. It names no instruction set; LLVM turns it into AVX-512, AVX2, SSE or NEON, and
only the shape follows the machine: L from the width of a register, R and V from the number of registers.

B may be bfloat16, two terms in each word of 32 bits (`packing`). Where the processor has the dot product of pairs, A
holds pairs as well, and a step of the tile takes two terms; elsewhere B's words are widened in registers, first the
lower and then the upper halves, and A holds float32.
"""
import functools
from typing import NamedTuple

from llvmlite import binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..arrays import CACHE_LINE
from ..codegen.bfloat16 import HAS_DOT, emit_dot, emit_widened
from ..environment import target

FLOAT, INTEGER, LANE, BYTE = ir.FloatType(), ir.IntType(64), ir.IntType(32), ir.IntType(8)


class Shape(NamedTuple):
    """Rows, vectors and lanes of a tile; `columns` = vectors · lanes."""
    rows: int
    vectors: int
    lanes: int

    @property
    def columns(self):
        return self.vectors * self.lanes


@functools.cache
def registers():
    """(lanes, number) of the vector registers that LLVM uses for the target, found by compiling one vector sum."""
    name, features = target()
    probe = """
        define void @add(ptr %a) {
            %x = load <16 x float>, ptr %a, align 4
            %y = fadd <16 x float> %x, %x
            store <16 x float> %y, ptr %a, align 4
            ret void
        }"""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(cpu=name, features=features)
    assembly = machine.emit_assembly(llvm.parse_assembly(probe))
    if "zmm" in assembly:
        return 16, 32                                    # AVX-512
    if "ymm" in assembly:
        return 8, 16                                     # AVX, AVX2
    return 4, 16 if "xmm" in assembly else 32            # SSE; NEON and others


# Sums, one vector row of B and a broadcast must fit into the registers: 14 · 2 + 2 + 1 ≤ 32, 6 · 2 + 2 + 1 ≤ 16.
LANES, _number = registers()
PRODUCT = Shape(14 if _number == 32 else 6, 2, LANES)


def vector_pointer(builder, base, offset, vector):
    """Pointer to the vector that begins `offset` floats after `base`."""
    return builder.bitcast(builder.gep(base, [offset]), vector.as_pointer())


def multiply_add(builder, a, b, c):
    """a · b + c of vectors: one instruction, or two where the processor has no fused one"""
    signature, name = ir.FunctionType(a.type, [a.type] * 3), f"llvm.fmuladd.v{a.type.count}f32"
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), [a, b, c])


def emit_prefetch(builder, pointer):
    """Fetch the cache line at `pointer` for reading, into the nearest cache"""
    pointer = builder.bitcast(pointer, BYTE.as_pointer())
    signature, name = ir.FunctionType(ir.VoidType(), [pointer.type, LANE, LANE, LANE]), "llvm.prefetch.p0"
    read, nearest, data = LANE(0), LANE(3), LANE(1)
    builder.call(cgutils.get_or_insert_function(builder.module, signature, name), [pointer, read, nearest, data])


def make_tile(shape, prefetching=False, b_stride=None):
    """→ tile(a, a_start, row_stride, k_stride, b, b_start, c, c_start, c_stride, depth, accumulate), used in kernels.

    The matrices lie in flat arrays, a and c of float32:

        A[i, k] = a[a_start + i · row_stride + k · k_stride]
        B[k, :] = b[b_start + k · b_stride :][: columns]         b_stride: `columns` unless given
        C[i, :] = c[c_start + i · c_stride :][: columns]

    `depth` ≥ 1 terms are summed and added to C if `accumulate`, else C is overwritten. Nothing is checked, and all of C
    must be readable. If a or b is uint16 the terms are bfloat16: k, strides and columns then count words of two terms,
    depth still counts terms. Both matrices hold such words if the processor multiplies pairs (`bfloat16.HAS_DOT`), in
    memory of either type; otherwise B does, and A holds float32.

    With `prefetching` there is one more argument, `later`: a cache line of a from there on is fetched into the cache at
    each k, `depth` of them in all, for a call to come. (It may lie beyond the end of a: then nothing happens.)
    """
    vector = ir.VectorType(FLOAT, shape.lanes)
    undefined, zeros = ir.Constant(vector, ir.Undefined), ir.Constant(vector, [0.0] * shape.lanes)
    first_lane = ir.Constant(ir.VectorType(LANE, shape.lanes), [0] * shape.lanes)
    cells = [(i, j) for i in range(shape.rows) for j in range(shape.vectors)]

    def generate(context, builder, signature, arguments):
        def pointer(position, offset):                   # to element `offset` of argument number `position`
            array = context.make_array(signature.args[position])(context, builder, arguments[position])
            return builder.bitcast(builder.gep(array.data, [offset]), FLOAT.as_pointer())

        a, b, c = (pointer(position, arguments[position + 1]) for position in (0, 4, 6))
        row_stride, k_stride = arguments[2], arguments[3]
        c_stride, depth, accumulate = arguments[8], arguments[9], arguments[10]
        later = pointer(0, arguments[11]) if prefetching else None
        terms = 2 if types.uint16 in (signature.args[0].dtype, signature.args[4].dtype) else 1       # in a word of B
        multiply, steps = (emit_dot, 1) if terms == 2 and HAS_DOT else (multiply_add, terms)
        words = builder.sdiv(builder.add(depth, INTEGER(terms - 1)), INTEGER(terms))

        def at(base, offset):
            return vector_pointer(builder, base, offset, vector)

        def cell(i, j):
            return at(c, builder.add(builder.mul(c_stride, INTEGER(i)), INTEGER(j * shape.lanes)))

        start = {ij: builder.select(accumulate, builder.load(cell(*ij), align=4), zeros) for ij in cells}
        before, loop, after = builder.block, builder.append_basic_block("k"), builder.append_basic_block("store")
        builder.branch(loop)

        builder.position_at_end(loop)
        k = builder.phi(INTEGER)
        sums = {ij: builder.phi(vector) for ij in cells}
        if prefetching:
            emit_prefetch(builder, builder.gep(later, [builder.mul(k, INTEGER(CACHE_LINE))]))
        row = builder.mul(k, INTEGER(b_stride or shape.columns))
        updated = dict(sums)
        for step in range(steps):
            bs = [builder.load(at(b, builder.add(row, INTEGER(j * shape.lanes))), align=4)
                  for j in range(shape.vectors)]
            if steps == 2:
                bs = [emit_widened(builder, pairs, half=step) for pairs in bs]
            column = builder.mul(builder.add(builder.mul(k, INTEGER(steps)), INTEGER(step)), k_stride)
            for i in range(shape.rows):
                offset = builder.add(builder.mul(row_stride, INTEGER(i)), column)
                scalar = builder.load(builder.gep(a, [offset]), align=4)
                spread = builder.insert_element(undefined, scalar, LANE(0))
                spread = builder.shuffle_vector(spread, undefined, first_lane)
                for j in range(shape.vectors):
                    updated[i, j] = multiply(builder, spread, bs[j], updated[i, j])
        next_k = builder.add(k, INTEGER(1))
        k.add_incoming(INTEGER(0), before)
        k.add_incoming(next_k, loop)
        for ij in cells:
            sums[ij].add_incoming(start[ij], before)
            sums[ij].add_incoming(updated[ij], loop)
        builder.cbranch(builder.icmp_signed("<", next_k, words), loop, after)

        builder.position_at_end(after)
        for ij in cells:
            builder.store(updated[ij], cell(*ij), align=4)
        return context.get_dummy_value()

    def signature(a, b, c, *more):
        size = types.intp
        return types.void(a, size, size, size, b, size, c, size, size, size, types.boolean, *more)

    @intrinsic
    def tile(typing, a, a_start, row_stride, k_stride, b, b_start, c, c_start, c_stride, depth, accumulate):
        return signature(a, b, c), generate

    @intrinsic
    def prefetching_tile(typing, a, a_start, row_stride, k_stride, b, b_start, c, c_start, c_stride, depth, accumulate,
                         later):
        return signature(a, b, c, types.intp), generate

    return prefetching_tile if prefetching else tile
