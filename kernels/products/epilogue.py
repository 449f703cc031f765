"""The last pass over a product: what is added to the sums while they go from working memory to the result.

    y = sums + bias (+ residual)          y = (value + bias) · GELU(gate + bias)

The bias is flat, `outputs` numbers for all images or as many for each; the residual is flat like y, or empty for none.
"""
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..activations import gelu_of
from ..arrays import shaped
from ..codegen.compiling import inlined
from ..codegen.memory import load, store
from ..codegen.streaming import mark_streamed
from .blocking import COLUMNS, panels_of
from .microkernel import FLOAT, LANES, vector_pointer

_NO_RESIDUAL, _ZERO = np.empty(0, np.float32), np.float32(0)


def checked(bias, residual, images, outputs, shape):
    """(bias, residual) in the form that kernels take; ValueError for shapes that do not fit.

    bias: None, (outputs,) or (images, outputs), None becomes zeros: adding them costs less than one more kind of pass
    residual: None, or of the result's `shape`
    """
    if bias is None:
        bias = np.zeros(outputs, np.float32)
    else:
        bias = shaped(bias, (outputs,) if bias.ndim == 1 else (images, outputs), "bias")
    return bias, _NO_RESIDUAL if residual is None else shaped(residual, shape, "residual")


@inlined
def bias_of(image, outputs, bias):
    """Where an image's bias begins."""
    return image * outputs if bias.size > outputs else 0


@intrinsic
def add_vectors(typing, x, x_start, y, y_start, target, start):
    """target[start:] = x[x_start:] + y[y_start:], LANES numbers of float32 in one vector"""
    def generate(context, builder, signature, arguments):
        def at(position):
            data = context.make_array(signature.args[position])(context, builder, arguments[position]).data
            return vector_pointer(builder, data, arguments[position + 1], ir.VectorType(FLOAT, LANES))

        total = builder.fadd(builder.load(at(0), align=4), builder.load(at(2), align=4))
        builder.store(total, at(4), align=4)
        return context.get_dummy_value()
    return types.void(x, types.intp, y, types.intp, target, types.intp), generate


def _make_streamed_sum(with_residual):
    """→ add_up(memory, sums, bias, shift, residual, y, target), for use in kernels: LANES numbers of y, see `write`."""
    @intrinsic
    def add_up(typing, memory, sums, bias, shift, residual, y, target):
        def generate(context, builder, signature, arguments):
            def at(array, offset):
                data = context.make_array(signature.args[array])(context, builder, arguments[array]).data
                return vector_pointer(builder, data, arguments[offset], ir.VectorType(FLOAT, LANES))

            total = builder.fadd(builder.load(at(0, 1), align=4), builder.load(at(2, 3), align=4))
            if with_residual:
                total = builder.fadd(total, builder.load(at(4, 6), align=4))
            mark_streamed(builder, builder.store(total, at(5, 6)))
            return context.get_dummy_value()
        return types.void(memory, types.intp, bias, types.intp, residual, y, types.intp), generate

    return add_up


_stream_sum, _stream_sum_with_residual = (_make_streamed_sum(with_residual) for with_residual in (False, True))


@inlined
def write(memory, sums, count, bias, shift, residual, streams, y, target):
    """y[target:] = memory[sums:] + bias[shift:] (+ residual[target:]), `count` numbers, past the caches if it `streams`"""
    if streams and residual.size > 0:
        for i in range(0, count, LANES):
            _stream_sum_with_residual(memory, sums + i, bias, shift + i, residual, y, target + i)
    elif streams:
        for i in range(0, count, LANES):
            _stream_sum(memory, sums + i, bias, shift + i, residual, y, target + i)
    elif residual.size > 0:
        for i in range(count):
            store(y, target + i, load(memory, sums + i) + load(bias, shift + i) + load(residual, target + i))
    else:
        for i in range(count):
            store(y, target + i, load(memory, sums + i) + load(bias, shift + i))


@inlined
def write_vectors(memory, sums, count, bias, shift, residual, y, target):
    """The same by single vectors: LLVM's loops above take several at once, and one by one what doesn't fill them."""
    whole = count // LANES * LANES
    for i in range(0, whole, LANES):
        add_vectors(memory, sums + i, bias, shift + i, y, target + i)
        if residual.size > 0:
            add_vectors(y, target + i, residual, target + i, y, target + i)
    for i in range(whole, count):
        added = load(residual, target + i) if residual.size > 0 else _ZERO
        store(y, target + i, load(memory, sums + i) + load(bias, shift + i) + added)


@inlined
def write_gated(memory, values, gates, count, bias, value_shift, gate_shift, y, target):
    """y[target:] = (memory[values:] + bias[value_shift:]) · GELU(memory[gates:] + bias[gate_shift:]), `count` numbers"""
    for i in range(count):
        value = load(memory, values + i) + load(bias, value_shift + i)
        gate = load(memory, gates + i) + load(bias, gate_shift + i)
        store(y, target + i, value * gelu_of(gate))


@inlined
def write_rectangle(memory, c, first, last, column, end, sizes, out_pixels, bias, residual, y):
    """Rows first … last − 1, columns column … end − 1 of y, from a job's C, which begins at memory[c].

    With a gate C holds the panels of the values, then those of the gates. out_pixels: rows of an image
    """
    value_panels = panels_of(column, end, sizes)[1]
    for m in range(first, last):
        sums, target = c + (m - first) * sizes.width, m * sizes.columns + column
        shift = bias_of(m // out_pixels, sizes.outputs, bias) + column
        if sizes.columns < sizes.outputs:
            gates = sums + value_panels * COLUMNS + (sizes.columns + column) % COLUMNS
            write_gated(memory, sums, gates, end - column, bias, shift, shift + sizes.columns, y, target)
        else:
            write(memory, sums, end - column, bias, shift, residual, False, y, target)
