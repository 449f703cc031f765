"""Attention without its T × S matrix: blocks of keys and a running softmax, with queries in the vector lanes.

    O = softmax(Q Kᵀ / √D) V

Vaswani et al. 2017, arXiv:1706.03762, computed in blocks as by Dao et al. 2022, arXiv:2205.14135. T queries, S keys,
h heads of width D. A job is one head of one image and a block of as many queries as a register tile has columns. Scores
are computed transposed, keys as rows and queries as lanes, a block of keys at a time:

        queries              queries                    queries
        ┌─────┐              ┌─────┐                    ┌─────┐
      D │  Qᵀ │       keys   │  P  │ = K Qᵀ           D │  Oᵀ │ += Vᵀ 2^(P − m)
        └─────┘              └─────┘                    └─────┘

Each lane keeps its own maximum m and sum l (`running_softmax`); when a block raises m, what was summed before is scaled
by 2^(m_old − m). So softmax needs no step across lanes, 2^(P − m) is already the operand that the tile wants next, and
rows of K and V are read where the linear layer wrote them. Powers of two, not of e: log₂ e is part of the scale on Q.
"""
import math

import numpy as np
from numba import prange, types

from . import threads
from .arrays import flat, float32
from .compiling import floats_in, floats_out, inlined, integers_out, kernel, size
from .memory import load, next_job, store
from .microkernel import PRODUCT, make_tile
from .running_softmax import make_softmax_step

ROWS = 8 if PRODUCT.rows > 8 else 4                      # divides the usual head widths: 40, 64, 80, 160, 512
QUERIES = PRODUCT.columns                                # of a job
KEYS = 128                                               # of a block: P is 16 KB with AVX-512
_MASKED = np.float32(-1e30)                              # finite, so that the difference of two is not NaN
_SMALL = 200_000                                         # multiply-adds that are not worth waking threads for

many_rows = make_tile(PRODUCT._replace(rows=ROWS))
one_row = make_tile(PRODUCT._replace(rows=1))            # for what is left over
softmax_step = make_softmax_step(PRODUCT)


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
    threads.launch(attend, images, queries, keys, heads, width, causal, flat(q), flat(k), flat(v), flat(y),
                   parallel=images * queries * keys * channels > _SMALL, scratch=(2 * width + KEYS + 3) * QUERIES)
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
            _attend_block(head // heads, head % heads, block * QUERIES, queries, keys, heads * width, width, causal,
                          q, k, v, y, memory, thread * share)
            job = next_job(counter)


@inlined
def _attend_block(image, head, first, queries, keys, channels, width, causal, q, k, v, y, memory, query):
    """Queries first … first + QUERIES − 1 of one head; memory[query:] holds Qᵀ, Oᵀ, P, then m, l, a factor per lane."""
    output = query + width * QUERIES
    score = output + width * QUERIES
    maximum = score + KEYS * QUERIES
    total, factor = maximum + QUERIES, maximum + 2 * QUERIES
    lanes = min(QUERIES, queries - first)
    q_row = (image * queries + first) * channels + head * width
    kv_row = image * keys * channels + head * width

    scale = np.float32(math.log2(math.e) / math.sqrt(width))
    for i in range(width * QUERIES):
        store(memory, query + i, 0)
    for lane in range(lanes):
        for d in range(width):
            store(memory, query + d * QUERIES + lane, load(q, q_row + lane * channels + d) * scale)
    for lane in range(QUERIES):
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
        softmax_step(memory, score, count, maximum, total, factor)
        if start > 0:
            for d in range(width):
                for lane in range(QUERIES):
                    at = output + d * QUERIES + lane
                    store(memory, at, load(memory, at) * load(memory, factor + lane))
        _accumulate(count, v, kv_row + start * channels, channels, width, memory, score, output, start > 0)

    for lane in range(lanes):
        share = np.float32(1) / load(memory, total + lane)
        for d in range(width):
            store(y, q_row + lane * channels + d, load(memory, output + d * QUERIES + lane) * share)


@inlined
def _scores(count, k, k_start, channels, width, memory, query, score):
    """P = K Qᵀ for `count` keys"""
    whole = count // ROWS * ROWS
    for s in range(0, whole, ROWS):
        many_rows(k, k_start + s * channels, channels, 1, memory, query,
                  memory, score + s * QUERIES, QUERIES, width, False)
    for s in range(whole, count):
        one_row(k, k_start + s * channels, channels, 1, memory, query,
                memory, score + s * QUERIES, QUERIES, width, False)


@inlined
def _accumulate(count, v, v_start, channels, width, memory, score, output, further):
    """Oᵀ = Vᵀ P for the first `count` keys, Oᵀ += Vᵀ P for further ones"""
    whole = width // ROWS * ROWS
    for d in range(0, whole, ROWS):
        many_rows(v, v_start + d, 1, channels, memory, score,
                  memory, output + d * QUERIES, QUERIES, count, further)
    for d in range(whole, width):
        one_row(v, v_start + d, 1, channels, memory, score,
                memory, output + d * QUERIES, QUERIES, count, further)
