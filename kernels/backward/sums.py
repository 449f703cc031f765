"""Sums over rows: the gradient of a bias is Σ g over all that it was added to.

A job is a run of rows of a group; `_RUN` rows are summed in float32, and these sums in float64.
"""
import numpy as np
from numba import types

from .. import threads
from ..arrays import flat, float32
from ..codegen.compiling import floats_in, floats_out, kernel, size
from ..codegen.memory import load, next_job, store

_SMALL = 30_000                                          # elements that are not worth waking threads for
_RUN = 32
doubles = types.Array(types.float64, 1, "C")


def row_sums(g, groups=1):
    """g: (..., C), whose rows are `groups` runs of equal length      → (groups, C)"""
    g = float32(g, "g")
    channels = g.shape[-1]
    rows = g.size // (channels * groups)
    parallel = g.size > _SMALL
    parts = max(1, min(-(-4 * threads.get_threads() // groups), rows // _RUN)) if parallel else 1
    sums = np.empty((groups, parts, channels), np.float64)
    threads.launch(sum_rows, groups * parts, parts, rows, channels, flat(g), flat(sums), parallel=parallel, scratch=channels)
    return sums.sum(axis=1).astype(np.float32)


@kernel(size, size, size, size, floats_in, doubles, floats_out, size)
def sum_rows(thread, counter, jobs, parts, rows, channels, g, sums, memory, share):
    """sums[job] = Σ over the job's rows"""
    at = thread * share
    job = next_job(counter)
    while job < jobs:
        group, part = divmod(job, parts)
        end = rows * (part + 1) // parts
        for c in range(channels):
            sums[job * channels + c] = 0
        for run in range(rows * part // parts, end, _RUN):
            for c in range(channels):
                store(memory, at + c, 0)
            for row in range(group * rows + run, group * rows + min(run + _RUN, end)):
                for c in range(channels):
                    store(memory, at + c, load(memory, at + c) + load(g, row * channels + c))
            for c in range(channels):
                sums[job * channels + c] += load(memory, at + c)
        job = next_job(counter)
