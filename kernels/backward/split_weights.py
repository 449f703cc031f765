"""The gradient of a matrix in tile registers: gᵀ x of float32, three bfloat16 for each number (`splitting`).

    dW[o, i] = Σₖ g[k, o] · x[k, i]

Terms run down both. A job is a block of outputs by inputs for a part of all terms, and takes a block of these at a time, split:

    A    g, turned round: a row for each output, a word of terms 2 k and 2 k + 1, parts side by side
    B    x, a panel of COLUMNS inputs after the other: a row for each two terms, as it lies

What is left of the terms is first filled up by zeros, to GROUP terms, which fill a tile.
"""
import math
from typing import NamedTuple

import numpy as np

from .. import threads
from ..arrays import flat
from ..codegen.compiling import floats_in, floats_out, inlined, kernels_for, size, sizes_of
from ..codegen.memory import load, next_job, store
from ..products import amx_tile
from ..products.blocking import COLUMNS
from ..products.microkernel import LANES
from ..products.split_matmul import DEPTH, PANEL, STRIDE, multiply_rows
from ..products.splitting import split_panel, turn_split
from .partial_sums import shared

GROUP = 2 * amx_tile.SIDE                                # terms that fill a tile's words
MOST = 512                                               # outputs and inputs of a job: 1 MB of sums, 0.5 MB of A
LEAST = 8 * GROUP                                        # terms of a part
_ZERO = np.float32(0)


class Sizes(NamedTuple):
    """Of a gradient and of its jobs."""
    terms: int
    outputs: int
    inputs: int
    block_outputs: int
    block_inputs: int
    parts: int                                           # that share the terms


def suits(g, x):
    """Whether tile registers take it: whole vectors of outputs, whole panels of inputs, more than a few terms."""
    return amx_tile.HAS_BFLOAT16 and g.shape[1] % LANES == 0 and x.shape[1] % COLUMNS == 0 and len(g) >= LEAST


def split_gradient(g, x):
    """gᵀ x      g: (terms, outputs)   x: (terms, inputs), float32 and contiguous   → (outputs, inputs)"""
    (terms, outputs), inputs = g.shape, x.shape[1]
    block_outputs, block_inputs = _even(outputs, LANES), _even(inputs, COLUMNS)
    blocks = -(-outputs // block_outputs) * -(-inputs // block_inputs)
    parts = min(shared(blocks, threads.get_threads()), terms // LEAST)
    sums = np.empty((parts, outputs, inputs), np.float32)
    sizes = Sizes(terms, outputs, inputs, block_outputs, block_inputs, parts)
    threads.launch(sum_split["float32"], tuple(sizes), flat(g), flat(x), flat(sums), parallel=parts * blocks > 1,
                   scratch=PANEL + block_outputs * STRIDE + GROUP * max(LANES, COLUMNS))
    return sums[0] if parts == 1 else sums.sum(axis=0)


def _even(count, of):
    """The size of the fewest parts of `count`, at most MOST and alike, in whole groups of so many"""
    return math.ceil(count / math.ceil(count / MOST) / of) * of


_SIGNATURE = sizes_of(Sizes), floats_in, floats_in, floats_out, floats_out, size


@kernels_for(**({"float32": _SIGNATURE} if amx_tile.HAS_BFLOAT16 else {}))
def sum_split(thread, counter, sizes, g, x, sums, memory, share):
    """A job is a block of dW for a part of the terms."""
    sizes = Sizes(*sizes)
    row_blocks = (sizes.outputs + sizes.block_outputs - 1) // sizes.block_outputs
    column_blocks = (sizes.inputs + sizes.block_inputs - 1) // sizes.block_inputs
    groups = (sizes.terms + GROUP - 1) // GROUP
    job = next_job(counter)
    while job < sizes.parts * row_blocks * column_blocks:
        part, block = divmod(job, row_blocks * column_blocks)
        row, column = divmod(block, column_blocks)
        row, column = row * sizes.block_outputs, column * sizes.block_inputs
        amx_tile.configure()
        _block(groups * part // sizes.parts * GROUP, min(groups * (part + 1) // sizes.parts * GROUP, sizes.terms),
               row, min(row + sizes.block_outputs, sizes.outputs), column, min(column + sizes.block_inputs, sizes.inputs),
               sizes, g, x, sums, part * sizes.outputs * sizes.inputs, memory, thread * share)
        amx_tile.release()
        job = next_job(counter)


@inlined
def _block(first, last, row, end, column, column_end, sizes, g, x, sums, target, memory, b):
    """sums[target:], (outputs, inputs), of outputs row … end − 1, inputs column … column_end − 1, terms first … last − 1

    memory[b:] holds a panel of B, A, and a group of terms that is filled up.
    """
    outputs, inputs = sizes.outputs, sizes.inputs
    a = b + PANEL
    filled = a + sizes.block_outputs * STRIDE
    for k0 in range(first, last, 2 * DEPTH):
        terms = min(2 * DEPTH, last - k0)
        whole = terms // GROUP * GROUP
        words = (terms + GROUP - 1) // GROUP * amx_tile.SIDE
        for output in range(row, end, LANES):
            place = a + (output - row) * STRIDE
            for k in range(0, whole, GROUP):
                turn_split(g, (k0 + k) * outputs + output, outputs, memory, place + k // 2, STRIDE, DEPTH)
            if whole < terms:
                _fill(g, (k0 + whole) * outputs + output, outputs, terms - whole, LANES, memory, filled)
                turn_split(memory, filled, LANES, memory, place + whole // 2, STRIDE, DEPTH)
        for lane in range(column, column_end, COLUMNS):
            split_panel(x, k0 * inputs + lane, inputs, memory, b, whole // 2, DEPTH * COLUMNS)
            if whole < terms:
                _fill(x, (k0 + whole) * inputs + lane, inputs, terms - whole, COLUMNS, memory, filled)
                split_panel(memory, filled, COLUMNS, memory, b + whole // 2 * COLUMNS, amx_tile.SIDE, DEPTH * COLUMNS)
            multiply_rows(end - row, memory, a, STRIDE, memory, b, sums, target + row * inputs + lane, inputs, words,
                          k0 > first)


@inlined
def _fill(source, start, step, rows, count, memory, target):
    """memory[target:] = GROUP rows of `count` numbers, of which zeros fill up those that there are"""
    for i in range(GROUP):
        for j in range(count):
            store(memory, target + i * count + j, load(source, start + i * step + j) if i < rows else _ZERO)
