"""Tiles in registers of their own: Intel's AMX multiplies 16 rows by 16 columns in one instruction.

    C[i, j] (+)= Σₖ A[i, k] · B[k, j]        i < 32 or 16, j < 32, k a word of two bfloat16 or of four bytes

A tile register holds 16 rows of 64 bytes. An instruction takes A (16 rows × 16 words) and B (16 rows of words × 16
columns) and adds their product to C (16 × 16): 16³ words, in 16 cycles, where a vector instruction makes 16. The rows
of B are words of terms that follow each other, one word for each column, which is what panels are (`packing`): a row
of a panel, 32 columns wide, is a row of two tiles of B. Rows of A lie where they were gathered. With eight registers,

            B₀   B₁           C  four       two tiles of A by two of B: four instructions for four loads, where one
       A₀   C₀₀  C₀₁          A, B  two         by one would wait for two loads at each
       A₁   C₁₀  C₁₁

A load takes a cache line of each of 16 rows. Where rows lie a power of two apart, these lines share few places in the nearest
cache, and wait for each other: at 1 KB a tile takes 1.5 times as long as at odd multiples of a line, which keep apart.

Terms that do not fill 16 words are left to the vector tile (`microkernel`, `int8_tile`).

A thread has tile registers from `configure` on, which sets their shapes and clears them, until `release`: meanwhile each
switch between threads saves 8 KB, so a job releases what it has configured. The system has to allow their use, which
`environment.target` asks for; where it refuses, its features lack AMX.

Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18: "Programming with Intel AMX".
"""
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..codegen import bfloat16
from ..codegen.compiling import inlined
from ..environment import target
from . import int8_tile
from .microkernel import BYTE, INTEGER, PRODUCT, emit_prefetch

SIDE = 16                                                # rows of a tile, and words of a row
ROWS = 2 * SIDE                                          # of the larger of two shapes of C
AHEAD = 3                                                # lines fetched while 32 are multiplied: enough for 8 to 16 tiles
_C, _A, _B = (0, 1, 2, 3), (4, 5), (6, 7)                # numbers of registers

_features = target()[1].split(",")
_fits = "+amx-tile" in _features and PRODUCT.columns == 2 * SIDE
HAS_BFLOAT16 = _fits and "+amx-bf16" in _features and bfloat16.HAS_DOT
HAS_INT8 = _fits and "+amx-int8" in _features and int8_tile.HAS_DOT


def multiplies(dtype):
    """Whether tile registers multiply weights of that dtype; float32 isn't a dtype of theirs, but see split_matmul.py."""
    return {"bfloat16": HAS_BFLOAT16, "int8": HAS_INT8}.get(dtype, False)


def _call(builder, name, *arguments):
    """Write an instruction"""
    kind = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), arguments)


def _shapes():
    """64 bytes: palette 1, then from byte 16 on the bytes of a row of each register, from byte 48 on its rows"""
    config = bytearray(64)
    config[0] = 1
    for register in (*_C, *_A, *_B):
        config[16 + 2 * register], config[48 + register] = 4 * SIDE, SIDE
    return config


@intrinsic
def configure(typing):
    """Tile registers, all of 16 rows of 64 bytes, for the thread that runs this; `release` gives them up."""
    def generate(context, builder, signature, arguments):
        shapes = cgutils.global_constant(builder, "tile_shapes", ir.Constant(ir.ArrayType(BYTE, 64), _shapes()))
        _call(builder, "ldtilecfg", builder.bitcast(shapes, BYTE.as_pointer()))
        return context.get_dummy_value()
    return types.void(), generate


@intrinsic
def release(typing):
    """The thread has no tile registers any more."""
    def generate(context, builder, signature, arguments):
        _call(builder, "tilerelease")
        return context.get_dummy_value()
    return types.void(), generate


def make_amx_tile(rows, instruction, halves=False, runs=False, pieces=None):
    """→ tile(a, a_start, a_stride, b, b_start, c, c_start, c_stride, words, old, begin, begin_stride), used in kernels.

    rows: 16 or 32     instruction: "tdpbf16ps" for words of two bfloat16 and a C of float32, or "tdpbusd" for words of four
    bytes, A's from 0 to 255 and B's from −128 to 127, and a C of int32

    All arrays are flat; whatever they hold, starts and strides count 32 bits:

        A[i, k] = a[a_start + i · a_stride + k]          B[k, :] = b[b_start + 32 k :][: 32]
        C[i, :] = c[c_start + i · c_stride :][: 32]

    `words` ≥ 16 are summed, a multiple of 16. Sums begin with what is at old[begin + i · begin_stride :], or with zeros if
    `begin` is negative. With `halves` a_start alone counts 16 bits, so that a row of A may begin in the middle of a word.
    With `runs` there are five more arguments, `count`, `down`, `across`, `jump` and `later`: of each row of A count · across
    runs of `words` are summed, the one in row u and column v of so many begins u · down + v · jump words after the first; in b
    all follow each other. Meanwhile AHEAD cache lines for every 16 words are fetched from b[later:] on, for calls to come.
    With `pieces` (`splitting`) A and B are sums: the first of the two says how many words after A₁, which lies where A does, A₂
    begins, and A₃ after that; the second likewise for B. C (+)= A₃B₁ + A₂B₁ + A₂B₂ + A₁B₂ + A₁B₁ + A₁B₃.
    Nothing is checked, and the thread's tile registers must be configured.
    """
    above = range(rows // SIDE)
    cells = [(i, j, BYTE(_C[2 * i + j])) for i in above for j in range(2)]

    def generate(context, builder, signature, arguments):
        a, a_start, a_stride, b, b_start, c, c_start, c_stride, words, old, begin, begin_stride, *more = arguments

        def counted(number):                             # bytes of so many words
            return builder.mul(number, INTEGER(4))

        def pointer(position, array, start, size=4):
            data = context.make_array(signature.args[position])(context, builder, array).data
            return further(builder.bitcast(data, BYTE.as_pointer()), builder.mul(start, INTEGER(size)))

        def further(base, offset):
            return builder.gep(base, [offset])

        def of_cell(base, stride, i, j):
            return further(base, builder.add(builder.mul(stride, INTEGER(SIDE * i)), INTEGER(4 * SIDE * j)))

        before = pointer(9, old, begin)
        panels = b
        a, b, c = pointer(0, a, a_start, 2 if halves else 4), pointer(3, b, b_start), pointer(5, c, c_start)
        a_stride, b_stride, c_stride, begin_stride = map(counted, (a_stride, INTEGER(2 * SIDE), c_stride, begin_stride))
        with builder.if_else(builder.icmp_signed("<", begin, INTEGER(0))) as (zero, given):
            with zero:
                for *_, register in cells:
                    _call(builder, "tilezero", register)
            with given:
                for i, j, register in cells:
                    _call(builder, "tileloadd64", register, of_cell(before, begin_stride, i, j), begin_stride)

        start, loop, after = builder.block, builder.append_basic_block("k"), builder.append_basic_block("store")
        builder.branch(loop)
        builder.position_at_end(loop)
        k = builder.phi(INTEGER)
        if runs:                                         # k goes on through all runs, `place` jumps from one to the next
            place, left, column = builder.phi(INTEGER), builder.phi(INTEGER), builder.phi(INTEGER)
        else:
            place = k

        def load_b(piece=1):
            row = further(b, builder.mul(k, b_stride))
            if piece > 1:
                row = further(row, INTEGER(4 * pieces[1] * (piece - 1)))
            for j in range(2):
                _call(builder, "tileloadd64", BYTE(_B[j]), of_cell(row, b_stride, 0, j), b_stride)

        def load_a(piece=1):
            column = further(a, counted(place))
            if piece > 1:
                column = further(column, INTEGER(4 * pieces[0] * (piece - 1)))
            for i in above:
                _call(builder, "tileloadd64", BYTE(_A[i]), of_cell(column, a_stride, i, 0), a_stride)

        def multiply():
            for i, j, register in cells:
                _call(builder, instruction, register, BYTE(_A[i]), BYTE(_B[j]))

        load_b()
        if pieces:                                       # each is loaded as seldom as can be
            for load, piece in ((load_a, 3), (load_a, 2), (load_b, 2), (load_a, 1), (load_b, 1)):
                load(piece)
                multiply()
            load_b(3)
        else:
            load_a()
        multiply()
        next_k, end = builder.add(k, INTEGER(SIDE)), words
        k.add_incoming(INTEGER(0), start)
        k.add_incoming(next_k, loop)
        if runs:
            count, down, across, jump, later = more
            coming = further(pointer(3, panels, later), builder.mul(k, INTEGER(4 * AHEAD)))
            for line in range(AHEAD):
                emit_prefetch(builder, further(coming, INTEGER(4 * SIDE * line)))
            end = builder.mul(words, builder.mul(count, across))
            back = builder.mul(jump, builder.sub(across, INTEGER(1)))            # to the first column
            still = builder.sub(left, INTEGER(SIDE))     # of this run
            next_column = builder.add(column, INTEGER(1))
            last = builder.icmp_signed("==", next_column, across)
            step = builder.sub(builder.select(last, builder.sub(down, back), jump), words)
            next_column = builder.select(last, INTEGER(0), next_column)
            over = builder.icmp_signed("==", still, INTEGER(0))
            next_place = builder.add(builder.add(place, INTEGER(SIDE)), builder.select(over, step, INTEGER(0)))
            next_left, next_column = builder.select(over, words, still), builder.select(over, next_column, column)
            for value, first, next_value in ((place, INTEGER(0), next_place), (left, words, next_left),
                                             (column, INTEGER(0), next_column)):
                value.add_incoming(first, start)
                value.add_incoming(next_value, loop)
        builder.cbranch(builder.icmp_signed("<", next_k, end), loop, after)

        builder.position_at_end(after)
        for i, j, register in cells:
            _call(builder, "tilestored64", register, of_cell(c, c_stride, i, j), c_stride)
        return context.get_dummy_value()

    def signature(a, b, c, old, *more):
        size = types.intp
        return types.void(a, size, size, b, size, c, size, size, size, old, size, size, *more)

    @intrinsic
    def tile(typing, a, a_start, a_stride, b, b_start, c, c_start, c_stride, words, old, begin, begin_stride):
        return signature(a, b, c, old), generate

    @intrinsic
    def tile_of_runs(typing, a, a_start, a_stride, b, b_start, c, c_start, c_stride, words, old, begin, begin_stride,
                     count, down, across, jump, later):
        return signature(a, b, c, old, *[types.intp] * 5), generate

    return tile_of_runs if runs else tile


def make_multiply_rows(pieces=None):
    """→ multiply_rows(rows, a, start, a_stride, panels, b, target, c, c_stride, words, further), for use in kernels.

    target[c:] = A B, or has that added if `further`, of words of two bfloat16, by the larger tile and, if the smaller holds
    what is left, by that; arrays, starts and strides are those of `make_amx_tile`, and so is `pieces`.
    """
    full_tile, half_tile = (make_amx_tile(rows, "tdpbf16ps", pieces=pieces) for rows in (ROWS, SIDE))

    @inlined
    def multiply_rows(rows, a, start, a_stride, panels, b, target, c, c_stride, words, further):
        for row in range(0, rows, ROWS):
            source, goal = start + row * a_stride, c + row * c_stride
            begin = goal if further else -1
            if rows - row > SIDE:
                full_tile(a, source, a_stride, panels, b, target, goal, c_stride, words, target, begin, c_stride)
            else:
                half_tile(a, source, a_stride, panels, b, target, goal, c_stride, words, target, begin, c_stride)

    return multiply_rows


multiply_rows = make_multiply_rows()
