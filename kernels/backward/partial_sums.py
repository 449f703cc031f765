"""The gradient of a weight from sums that several jobs have made, each of some of the pixels.

    dW[o, i, tap] = Σ over parts of sums[part, tap, ⌊o / COLUMNS⌋, i, o mod COLUMNS]

Outputs are what a job computes side by side, a panel of them, but they are furthest apart in a weight. So LANES outputs of as
many (i, tap) are added up as vectors, and that square is turned round in registers. Panels may stand beside each other or one
after the other.
"""
from typing import NamedTuple

import numpy as np

from .. import threads
from ..arrays import flat
from ..codegen.compiling import floats_in, floats_out, inlined, kernel, size, sizes_of
from ..codegen.memory import load, next_job, store
from ..products.microkernel import LANES
from ..products.packing import COLUMNS
from ..products.transposition import make_transpose

transpose = make_transpose(LANES)
_ONE = np.float32(1)


class Sizes(NamedTuple):
    """How many, and how far apart in memory."""
    parts: int
    taps: int
    inputs: int
    outputs: int
    from_part: int                                       # to the next
    from_tap: int
    from_panel: int
    from_input: int


def added(sums, inputs, outputs):
    """sums: (parts, taps, panels, rows ≥ inputs, COLUMNS), see above, or (parts, taps, rows, outputs in whole panels)

    → (outputs, inputs, taps)
    """
    parts, taps, *_ = sums.shape
    steps = sums.strides if sums.ndim == 5 else (*sums.strides[:2], 4 * COLUMNS, sums.strides[2])
    result = np.empty((outputs, inputs, taps), np.float32)
    sizes = Sizes(parts, taps, inputs, outputs, *(step // 4 for step in steps[:4]))
    threads.launch(add, tuple(sizes), flat(sums), flat(result), parallel=sums.size > 100_000,
                   scratch=2 * LANES * LANES)
    return result


def shared(blocks, threads):
    """Among how many jobs the pixels of a block are shared out: few, since each sums a block of its own, but so many that
    threads are idle for a fifth of the time at most"""
    return next(parts for parts in range(1, threads + 1) if -(-parts * blocks // threads) * threads <= 1.25 * parts * blocks)


@kernel(sizes_of(Sizes), floats_in, floats_out, floats_out, size)
def add(thread, counter, sizes, sums, gradient, memory, share):
    """A job is LANES outputs."""
    sizes = Sizes(*sizes)
    job = next_job(counter)
    while job * LANES < sizes.outputs:
        output, numbers = job * LANES, sizes.inputs * sizes.taps
        for first in range(0, numbers, LANES):
            count = min(LANES, numbers - first)
            _square(first, count, output, sizes, sums, memory, thread * share)
            if count == LANES and output + LANES <= sizes.outputs:
                transpose(memory, thread * share, LANES, _ONE, gradient, output * numbers + first, numbers)
            else:
                turned = thread * share + LANES * LANES
                transpose(memory, thread * share, LANES, _ONE, memory, turned, LANES)
                for lane in range(min(LANES, sizes.outputs - output)):
                    target = (output + lane) * numbers + first
                    for number in range(count):
                        store(gradient, target + number, load(memory, turned + lane * LANES + number))
        job = next_job(counter)


@inlined
def _square(first, count, output, sizes, sums, memory, square):
    """memory[square:] = a row of LANES outputs for each of `count` (i, tap) from number `first` on, all parts added up"""
    i, tap = divmod(first, sizes.taps)
    for number in range(count):
        at = tap * sizes.from_tap + output // COLUMNS * sizes.from_panel + i * sizes.from_input + output % COLUMNS
        for lane in range(LANES):
            store(memory, square + number * LANES + lane, load(sums, at + lane))
        for part in range(1, sizes.parts):
            further = at + part * sizes.from_part
            for lane in range(LANES):
                place = square + number * LANES + lane
                store(memory, place, load(memory, place) + load(sums, further + lane))
        tap += 1
        if tap == sizes.taps:
            i, tap = i + 1, 0
