"""Stores that pass by the caches, for results that are larger than these.

A usual store first reads the line that it changes: a result that nobody wants soon costs its size twice, once read and once
written, and pushes out what is wanted. Streamed lines are gathered beside the cache and written as a whole, in 0.6 of the
time for 128 MB read and as much written. Few can be on their way at once, though: that suits results that come steadily, and
not those that a job writes all together (products in tile registers would take 1.5 times as long). They become visible to
other threads when this one next takes a job: the counter's atomic addition waits for them.
"""
from llvmlite import ir

from ..arrays import CACHE_LINE, is_aligned

LARGE = 2 << 20                                          # numbers, 8 MB: more than there is cache for two threads


def suits(y, run):
    """Whether y should be streamed, of which `run` numbers are written at a time: it is large, and these are whole lines."""
    return y.size >= LARGE and run % CACHE_LINE == 0 and is_aligned(y)


def mark_streamed(builder, store):
    """Let a store of a vector, which begins where a vector may, pass by the caches."""
    store.align = store.operands[0].type.count * 4
    store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
