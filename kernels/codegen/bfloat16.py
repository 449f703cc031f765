"""bfloat16: a float32 without its lower half, so numbers of 16 bits with the range of float32 and 8 significant bits.

    float32     s eeeeeeee mmmmmmmmmmmmmmmmmmmmmmm
    bfloat16    s eeeeeeee mmmmmmm                       kept as uint16, because neither NumPy nor numba has the type

Widening is a shift. Narrowing rounds to nearest, ties to even; NaN stays NaN. The product of two has 16 significant
bits, so it is exact in float32, and sums are float32 too: all that a bfloat16 product loses is lost when narrowing.

Processors with AVX512-BF16 have an instruction for it, y + a₀ b₀ + a₁ b₁ in each lane, where a and b are words of two
bfloat16. It makes twice as many multiply-adds as float32 vectors of the same length. Others multiply in float32 what
has been narrowed and widened again, which gives the same numbers but for the last bits of sums.
"""
import numpy as np
from llvmlite import binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..environment import target
from .compiling import inlined
from .memory import load, store, store_half

# LLVM has had the instruction with operands of this type since 16. The name of a CPU alone is not asked, only features:
# an instruction that the target lacks would abort the process.
HAS_DOT = "+avx512bf16" in target()[1].split(",") and llvm.llvm_version_info[0] >= 16

_SHIFT, _ONE, _HALF = np.uint32(16), np.uint32(1), np.uint32(0x7fff)
_QUIET = np.uint32(0x400000)                             # a bit of the mantissa that makes sure that NaN keeps one


@inlined
def widened(bits):
    """float32 from the bits of a bfloat16"""
    return np.uint32(np.uint32(bits) << _SHIFT).view(np.float32)


@inlined
def narrowed(x):
    """Bits of the bfloat16 nearest to a float32"""
    bits = np.float32(x).view(np.uint32)
    even = np.uint32(np.uint32(bits >> _SHIFT) & _ONE)
    rounded = np.uint32(np.uint32(bits + _HALF) + even)
    return np.uint16(np.uint32((rounded if x == x else np.uint32(bits | _QUIET)) >> _SHIFT))


@inlined
def factors_per_word(panels):
    """How many factors of the left side stand in a word of 32 bits, if `panels`, float32 or uint16, are the right side."""
    return 2 if panels.itemsize == 2 and HAS_DOT else 1


@inlined
def store_factor(memory, index, value, panels):
    """Make `value` factor number `index` of a left side in `memory`, which is float32.

    panels: the right side, float32 or uint16; its type decides, when compiling, which branch there is.
    """
    if panels.itemsize == 4:
        store(memory, index, value)
    elif HAS_DOT:
        store_half(memory, index, narrowed(value))
    else:
        store(memory, index, widened(narrowed(value)))


class _BFloat(ir.Type):
    """LLVM's name for the type, which llvmlite lacks."""
    def __str__(self):
        return "bfloat"

    _to_string = __str__

    def __eq__(self, other):
        return isinstance(other, _BFloat)

    def __hash__(self):
        return hash(_BFloat)


def emit_dot(builder, a, b, c):
    """Write LLVM code for c + a₀ b₀ + a₁ b₁, where vectors a and b of float32 are words of two bfloat16."""
    pairs = ir.VectorType(_BFloat(), 2 * c.type.count)
    name = f"llvm.x86.avx512bf16.dpbf16ps.{32 * c.type.count}"
    dot = cgutils.get_or_insert_function(builder.module, ir.FunctionType(c.type, [c.type, pairs, pairs]), name)
    return builder.call(dot, [c, builder.bitcast(a, pairs), builder.bitcast(b, pairs)])


def emit_narrowed_run(builder, first, second):
    """Write LLVM code for words of two bfloat16, seen as float32, from numbers in a row: `first`, then `second`."""
    lanes = first.type.count
    name = f"llvm.x86.avx512bf16.cvtne2ps2bf16.{32 * lanes}"
    signature = ir.FunctionType(ir.VectorType(_BFloat(), 2 * lanes), [first.type] * 2)
    halves = builder.call(cgutils.get_or_insert_function(builder.module, signature, name), [second, first])
    return builder.bitcast(halves, first.type)


def make_narrow_run(lanes):
    """→ narrow_run(source, start, memory, target, count), for use in kernels; source and memory are float32.

    Numbers start … start + count − 1 of `source` become bfloat16 number target, target + 1, ... in `memory`.
    """
    vector = ir.VectorType(ir.FloatType(), lanes)

    @intrinsic
    def narrow_vectors(typing, source, start, memory, target):
        def generate(context, builder, signature, arguments):
            source, memory = (context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in (0, 2))
            numbers = builder.bitcast(builder.gep(source, [arguments[1]]), vector.as_pointer())
            pair = [builder.load(builder.gep(numbers, [ir.IntType(64)(i)]), align=4) for i in range(2)]
            halves = builder.gep(builder.bitcast(memory, ir.IntType(16).as_pointer()), [arguments[3]])
            builder.store(emit_narrowed_run(builder, *pair), builder.bitcast(halves, vector.as_pointer()), align=2)
            return context.get_dummy_value()
        return types.void(source, types.intp, memory, types.intp), generate

    @inlined
    def narrow_run(source, start, memory, target, count):
        whole = count // (2 * lanes) * (2 * lanes)
        for i in range(0, whole, 2 * lanes):
            narrow_vectors(source, start + i, memory, target + i)
        for i in range(whole, count):
            store_half(memory, target + i, narrowed(load(source, start + i)))

    return narrow_run


def emit_narrowed(builder, even, odd):
    """Write LLVM code for words of two bfloat16, seen as float32: lower halves from vector `even`, upper ones from `odd`."""
    lanes = even.type.count
    halves = builder.bitcast(emit_narrowed_run(builder, even, odd), ir.VectorType(ir.IntType(16), 2 * lanes))
    order = [i // 2 + i % 2 * lanes for i in range(2 * lanes)]
    mask = ir.Constant(ir.VectorType(ir.IntType(32), 2 * lanes), order)
    return builder.bitcast(builder.shuffle_vector(halves, ir.Constant(halves.type, ir.Undefined), mask), even.type)


def emit_widened(builder, words, half):
    """Write LLVM code for lower (0) or upper (1) halves of a vector of words as float32."""
    integers = ir.VectorType(ir.IntType(32), words.type.count)
    bits = builder.bitcast(words, integers)
    if half == 0:
        bits = builder.shl(bits, ir.Constant(integers, [16] * integers.count))
    else:
        bits = builder.and_(bits, ir.Constant(integers, [0xffff0000] * integers.count))
    return builder.bitcast(bits, words.type)


def emit_pair(builder, lower, upper):
    """Write LLVM code for words of two bfloat16 from two vectors of float32; ties are rounded away from zero.

    NaN stays NaN but for one: with all bits of its mantissa set, which no arithmetic makes, it becomes a zero.
    """
    integers = ir.VectorType(ir.IntType(32), lower.type.count)

    def constant(value):
        return ir.Constant(integers, [value] * integers.count)

    lower, upper = (builder.add(builder.bitcast(x, integers), constant(0x8000)) for x in (lower, upper))
    words = builder.or_(builder.lshr(lower, constant(16)), builder.and_(upper, constant(0xffff0000)))
    return builder.bitcast(words, ir.VectorType(ir.FloatType(), integers.count))
