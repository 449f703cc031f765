"""What numba's language lacks for kernels: indexing without wrap-around, memory seen as numbers of another size, and a
counter that threads share.

x[i] in numba counts from the end when i < 0. The test for that keeps LLVM from seeing that x[i], x[i + 1], ... are
neighbours, and so from vectorising the loop. `load` and `store` take the index as it is; the caller keeps it in bounds.
`load_float`, `store_half` and so on see an array's memory as float32, 16-bit numbers or bytes, whatever the array says.
"""
from llvmlite import ir
from numba import types
from numba.extending import intrinsic


def _element(context, builder, signature, arguments):
    """Pointer to element arguments[1] of the flat array arguments[0]."""
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    return builder.gep(array.data, [arguments[1]])


@intrinsic
def load(typing, array, index):
    """array[index], for index ≥ 0"""
    def generate(context, builder, signature, arguments):
        return builder.load(_element(context, builder, signature, arguments))
    return array.dtype(array, types.intp), generate


@intrinsic
def store(typing, array, index, value):
    """array[index] = value, for index ≥ 0"""
    def generate(context, builder, signature, arguments):
        builder.store(arguments[2], _element(context, builder, signature, arguments))
        return context.get_dummy_value()
    return types.void(array, types.intp, array.dtype), generate


def _seen_as(number):
    """load and store for memory seen as numbers of a type, of which `index` counts"""
    def pointer(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.gep(builder.bitcast(array.data, context.get_value_type(number).as_pointer()), [arguments[1]])

    @intrinsic
    def load(typing, array, index):
        def generate(context, builder, signature, arguments):
            return builder.load(pointer(context, builder, signature, arguments))
        return number(array, types.intp), generate

    @intrinsic
    def store(typing, array, index, value):
        def generate(context, builder, signature, arguments):
            builder.store(arguments[2], pointer(context, builder, signature, arguments))
            return context.get_dummy_value()
        return types.void(array, types.intp, number), generate

    return load, store


load_float, store_float = _seen_as(types.float32)
load_half, store_half = _seen_as(types.uint16)
load_byte, store_byte = _seen_as(types.uint8)


@intrinsic
def next_job(typing, counter):
    """counter[0]++ in one indivisible step → its value before: each number is handed out once, whoever asks"""
    def generate(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.atomic_rmw("add", array.data, ir.IntType(64)(1), "monotonic")
    return types.int64(counter), generate
