"""Attention without its T × S matrix: blocks of keys and a running softmax, with queries in the vector lanes.

    O = softmax(Q Kᵀ / √D) V          Vaswani et al. 2017, arXiv:1706.03762; blocked as by Dao et al. 2022, arXiv:2205.14135

T queries, S keys, h heads of width D. A job is one head of one image and a block of as many queries as a register tile has
columns. Scores are computed transposed, P = K Qᵀ with keys as rows and queries as lanes, a block of keys at a time:

        queries              queries                    queries
        ┌─────┐              ┌─────┐                    ┌─────┐
      D │  Q  │       keys   │  P  │ = K Q            D │  O  │ += Vᵀ 2^(P − m)
        └─────┘              └─────┘                    └─────┘

Each lane keeps its own maximum m and sum l; when a block raises m, what was summed before is scaled by 2^(m_old − m).
So softmax needs no step across lanes, 2^(P − m) is already the operand that the tile wants next, and rows of K and V are
read where the linear layer wrote them. Powers of two instead of e: log₂ e is part of the scale on Q.
"""
import math

import numpy as np
from numba import prange, types

from . import threads
from .arrays import flat, float32
from .compiling import floats_in, floats_out, inlined, integers_out, kernel, size
from .exponential import exp2
from .memory import load, next_job, store
from .microkernel import PRODUCT, Shape, make_tile

ROWS = 8 if PRODUCT.rows > 8 else 4                      # divides the usual head widths: 40, 64, 80, 160, 512
QUERIES = PRODUCT.columns                                # of a job
KEYS = 128                                               # of a block: P is 16 KB with AVX-512
_MASKED = np.float32(-1e30)                              # finite, so that the difference of two is not NaN
_SMALL = 200_000                                         # multiply-adds that are not worth waking threads for

many_rows = make_tile(Shape(ROWS, PRODUCT.vectors, PRODUCT.lanes))
one_row = make_tile(Shape(1, PRODUCT.vectors, PRODUCT.lanes))        # for what is left over


def attention(q, k, v, heads, causal=False):
    """softmax(Q Kᵀ / √D) V for each head      q: (N, T, h·D)   k, v: (N, S, h·D)   → (N, T, h·D)

    With `causal`, query t sees keys 0..t alone (T = S). ValueError if the shapes do not fit.
    """
    q, k, v = float32(q, "q"), float32(k, "k"), float32(v, "v")
    images, queries, channels = q.shape
    keys = k.shape[1]
    if k.shape != v.shape or k.shape != (images, keys, channels) or channels % heads or keys < 1:
        raise ValueError(f"attention of {heads} heads cannot take q {q.shape}, k {k.shape}, v {v.shape}")
    if causal and queries != keys:
        raise ValueError(f"causal attention needs as many keys as queries, not {keys} and {queries}")
    y = np.empty(q.shape, np.float32)
    width = channels // heads
    memory, share = threads.scratch((2 * width + KEYS + 3) * QUERIES)
    threads.launch(attend, images, queries, keys, heads, width, causal, flat(q), flat(k), flat(v), flat(y), memory, share,
                   parallel=images * queries * keys * channels > _SMALL)
    return y


@kernel(size, integers_out, size, size, size, size, size, types.boolean, floats_in, floats_in, floats_in, floats_out,
        floats_out, size)
def attend(thread_count, counter, images, queries, keys, heads, width, causal, q, k, v, y, memory, share):
    """Jobs go through the queries of a head first: threads that run at the same time read the same keys."""
    blocks = (queries + QUERIES - 1) // QUERIES
    for thread in prange(thread_count):
        job = next_job(counter)
        while job < images * heads * blocks:
            head, block = divmod(job, blocks)
            _attend_block(head // heads, head % heads, block * QUERIES, queries, keys, heads * width, width, causal, q, k, v,
                          y, memory, thread * share)
            job = next_job(counter)


@inlined
def _attend_block(image, head, first, queries, keys, channels, width, causal, q, k, v, y, memory, query):
    """Queries first … first + QUERIES − 1 of one head. memory[query:] holds Q, O, P, then m, l and a factor per lane."""
    output = query + width * QUERIES
    score = output + width * QUERIES
    maximum = score + KEYS * QUERIES
    total, factor = maximum + QUERIES, maximum + 2 * QUERIES
    lanes = min(QUERIES, queries - first)
    q_row = (image * queries + first) * channels + head * width
    kv_row = image * keys * channels + head * width

    scale = np.float32(math.log2(math.e) / math.sqrt(width))
    for lane in range(QUERIES):
        for d in range(width):
            value = load(q, q_row + lane * channels + d) * scale if lane < lanes else np.float32(0)
            store(memory, query + d * QUERIES + lane, value)
            store(memory, output + d * QUERIES + lane, 0)
        store(memory, maximum + lane, _MASKED)
        store(memory, total + lane, 0)

    end = min(keys, first + lanes) if causal else keys   # later keys are masked for every query of the block
    for start in range(0, end, KEYS):
        count = min(KEYS, end - start)
        _scores(count, k, kv_row + start * channels, channels, width, memory, query, score)
        if causal and start + count > first + 1:
            for s in range(count):
                for lane in range(min(QUERIES, start + s - first)):
                    store(memory, score + s * QUERIES + lane, _MASKED)
        _running_softmax(count, width, memory, score, output, maximum, total, factor)
        _accumulate(count, v, kv_row + start * channels, channels, width, memory, score, output)

    for lane in range(QUERIES):
        store(memory, factor + lane, np.float32(1) / load(memory, total + lane))
    for lane in range(lanes):
        for d in range(width):
            store(y, q_row + lane * channels + d, load(memory, output + d * QUERIES + lane) * load(memory, factor + lane))


@inlined
def _scores(count, k, k_start, channels, width, memory, query, score):
    """P = K Q for `count` keys"""
    whole = count // ROWS * ROWS
    for s in range(0, whole, ROWS):
        many_rows(k, k_start + s * channels, channels, 1, memory, query, memory, score + s * QUERIES, QUERIES, width, False)
    for s in range(whole, count):
        one_row(k, k_start + s * channels, channels, 1, memory, query, memory, score + s * QUERIES, QUERIES, width, False)


@inlined
def _running_softmax(count, width, memory, score, output, maximum, total, factor):
    """P ← 2^(P − m) with the maximum m so far; O and l, which hold earlier keys, are scaled to the new m."""
    for lane in range(QUERIES):
        store(memory, factor + lane, load(memory, maximum + lane))
    for s in range(count):
        for lane in range(QUERIES):
            new, old = load(memory, score + s * QUERIES + lane), load(memory, maximum + lane)
            store(memory, maximum + lane, old if new < old else new)
    for lane in range(QUERIES):
        change = exp2(load(memory, factor + lane) - load(memory, maximum + lane))
        store(memory, factor + lane, change)
        store(memory, total + lane, load(memory, total + lane) * change)
    for d in range(width):
        for lane in range(QUERIES):
            at = output + d * QUERIES + lane
            store(memory, at, load(memory, at) * load(memory, factor + lane))
    for s in range(count):
        for lane in range(QUERIES):
            at = score + s * QUERIES + lane
            e = exp2(load(memory, at) - load(memory, maximum + lane))
            store(memory, at, e)
            store(memory, total + lane, load(memory, total + lane) + e)


@inlined
def _accumulate(count, v, v_start, channels, width, memory, score, output):
    """O += Vᵀ P for `count` keys"""
    whole = width // ROWS * ROWS
    for d in range(0, whole, ROWS):
        many_rows(v, v_start + d, 1, channels, memory, score, memory, output + d * QUERIES, QUERIES, count, True)
    for d in range(whole, width):
        one_row(v, v_start + d, 1, channels, memory, score, memory, output + d * QUERIES, QUERIES, count, True)
