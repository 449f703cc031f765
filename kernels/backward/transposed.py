"""The weight by which the gradient of a product's input is a product again, packed from the packed weight itself.

    y = x Wᵀ           dx = g W = g (Wᵀ)ᵀ
    y = conv(x, W)     dx = conv(g, W′), W′[i, o, u, v] = W[o, i, kh − 1 − u, kw − 1 − v]

In panels (`packing`), a tap's weights are matrices of inputs by `columns` outputs; what is wanted are those of outputs by
`columns` inputs: blocks of columns × columns numbers are transposed in registers, and taps change places. Nothing is kept:
a transposed copy of all weights would double their memory, and packing one passes over it once.
"""
import math
from typing import NamedTuple

import numpy as np

from .. import threads
from ..arrays import aligned
from ..codegen.compiling import floats_in, floats_out, halves_in, halves_out, inlined, kernels_for, size, sizes_of
from ..codegen.memory import load, next_job, store
from ..products.microkernel import LANES
from ..products.packing import COLUMNS, Packed, packed, packed_depth
from ..products.transposition import make_transpose

transpose = make_transpose(LANES)
_ONE = np.float32(1)


def transposed(weight):
    """(O, I) → (I, O), (O, I, kh, kw) → (I, O, kh, kw), flipped; weight: Packed, or an array      → Packed, same dtype"""
    weight = packed(weight)
    outputs, inputs, *kernel = weight.shape
    taps = math.prod(kernel)
    result = Packed.__new__(Packed)
    result.shape, result.dtype, result.is_finite = (inputs, outputs, *kernel), weight.dtype, weight.is_finite
    panels = -(-inputs // COLUMNS)
    if weight.dtype == "float32":
        result.panels = aligned(panels * COLUMNS * taps * outputs)
    else:
        result.panels = aligned(panels * COLUMNS * (-(-taps * outputs // 2))).view(np.uint16)
    threads.launch(turn[weight.dtype], tuple(Sizes(outputs, inputs, taps)), weight.panels, result.panels, 0,
                   parallel=weight.panels.size > 100_000)
    return result


def of_taps(weight, rows, columns):
    """The weight of some rows and columns of its kernel, which slices choose      Packed → Packed, same dtype

    bfloat16 stands in pairs of inputs: ValueError where a pair belongs to two taps.
    """
    outputs, inputs, *kernel = weight.shape
    taps = np.arange(math.prod(kernel)).reshape(kernel)[rows, columns]
    if weight.dtype != "float32" and inputs % 2:
        raise ValueError(f"bfloat16 of {inputs} inputs can't be divided by taps")
    whole = weight.panels.reshape(-(-outputs // COLUMNS), math.prod(kernel), inputs * COLUMNS)
    result = Packed.__new__(Packed)
    result.shape, result.dtype, result.is_finite = (outputs, inputs, *taps.shape), weight.dtype, weight.is_finite
    part = np.take(whole, taps.reshape(-1), axis=1)
    result.panels = aligned(part.nbytes // 4).view(part.dtype)
    result.panels[:] = part.reshape(-1)
    return result


class Sizes(NamedTuple):
    """Of the weight as it is."""
    outputs: int
    inputs: int
    taps: int


@kernels_for(float32=(sizes_of(Sizes), floats_in, floats_out, size), bfloat16=(sizes_of(Sizes), halves_in, halves_out, size))
def turn(thread, counter, sizes, panels, target, unused):
    """A job is a panel of the result: `columns` inputs of all outputs."""
    sizes = Sizes(*sizes)
    job = next_job(counter)
    while job < (sizes.inputs + COLUMNS - 1) // COLUMNS:
        if panels.itemsize == 4:
            _turn_panel(job, sizes, panels, target)
        else:
            _turn_words(job, sizes, panels, target)
        job = next_job(counter)


@inlined
def _turn_panel(panel, sizes, panels, target):
    """target[panel][(taps − 1 − tap) · outputs + output][input] = panels[output's panel][tap · inputs + input][output]"""
    outputs, inputs, taps = sizes.outputs, sizes.inputs, sizes.taps
    first = panel * COLUMNS
    count = min(COLUMNS, inputs - first)
    for tap in range(taps):
        for output in range(0, outputs, LANES):
            source = ((output // COLUMNS * taps + tap) * inputs + first) * COLUMNS + output % COLUMNS
            goal = ((panel * taps + taps - 1 - tap) * outputs + output) * COLUMNS
            if count == COLUMNS and output + LANES <= outputs:
                for lane in range(0, COLUMNS, LANES):
                    transpose(panels, source + lane * COLUMNS, COLUMNS, _ONE, target, goal + lane, COLUMNS)
            else:
                for row in range(min(LANES, outputs - output)):
                    for lane in range(count):
                        store(target, goal + row * COLUMNS + lane, load(panels, source + lane * COLUMNS + row))
                    for lane in range(count, COLUMNS):
                        store(target, goal + row * COLUMNS + lane, 0)


@inlined
def _turn_words(panel, sizes, panels, target):
    """The same for words of two bfloat16, number by number; what is beyond the edges is zero"""
    outputs, inputs, taps = sizes.outputs, sizes.inputs, sizes.taps
    from_rows, to_rows = packed_depth(taps * inputs, panels) // 2, packed_depth(taps * outputs, panels) // 2
    first = panel * COLUMNS
    count = min(COLUMNS, inputs - first)
    for tap in range(taps):
        k = (taps - 1 - tap) * inputs + first
        for output in range(outputs):
            source = output // COLUMNS * from_rows * COLUMNS + output % COLUMNS
            new_k = tap * outputs + output
            goal = (panel * to_rows + new_k // 2) * COLUMNS * 2 + new_k % 2
            for lane in range(count):
                store(target, goal + 2 * lane, load(panels, (source + (k + lane) // 2 * COLUMNS) * 2 + (k + lane) % 2))
            for lane in range(count, COLUMNS):
                store(target, goal + 2 * lane, 0)
    if taps * outputs % 2:
        for lane in range(COLUMNS):
            store(target, ((panel * to_rows + to_rows - 1) * COLUMNS + lane) * 2 + 1, 0)
