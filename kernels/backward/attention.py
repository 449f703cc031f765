"""The gradient of attention without a matrix of tokens by tokens, after FlashAttention (Dao et al. 2022, arXiv:2205.14135).

    S = Q Kᵀ / √D     P = e^(S − l)     dP = G Vᵀ     dS = P (dP − δ)
    dV = Pᵀ G         dK = dSᵀ Q / √D   dQ = dS K / √D

l = ln Σ e^S and δ = Σ G Y are one number for each query: so any tile of P can be made again by itself. Letters as in
flash_attention.py; queries are lanes here as well, two register tiles of them (one where there are no more), and keys are rows:

        queries            queries                keys                     width
        ┌─────┐            ┌─────┐                ┌────┐                   ┌─────┐
   keys │  P  │ = K Qᵀ    │ dP  │ = V Gᵀ      D │dQᵀ │ += Kᵀ dS      keys │ dV  │ += P G       and dK += dS Q
        └─────┘            └─────┘                └────┘                   └─────┘

`prepare` puts Q and G as each product wants them, and finds l and δ. Then a job is a run of keys of one head: it goes
through all queries, block by block, and keeps dK and dV of its keys; its share of dQ is added to what the run's jobs
before it have left, if there is one run for each head. Where there are few heads there are several runs, each with
a dQ of its own, and `finish` adds these up.
"""
import math
from typing import NamedTuple

import numpy as np
from numba import types

from .. import threads
from ..arrays import flat, float32
from ..codegen.compiling import floats_in, floats_out, inlined, kernel, size, sizes_of
from ..codegen.exponential import exp
from ..codegen.memory import load, next_job, store
from ..products.flash_attention import KEYS, ROWS, many_rows, one_row
from ..products.microkernel import PRODUCT
from ..products.running_softmax import LOWEST

LANES = PRODUCT.columns                                  # queries of a register tile
QUERIES = 2 * LANES                                      # of a block; what belongs to it is computed up to `_lanes`
_LOWEST = np.float32(LOWEST)
_SMALL = 200_000                                         # multiply-adds that are not worth waking threads for


def attention_gradient(g, y, q, k, v, heads, causal=False):
    """→ dQ (N, T, h·D), dK, dV (N, S, h·D)      g, y, q: (N, T, h·D)   k, v: (N, S, h·D)"""
    g, y, q, k, v = (float32(x, name) for x, name in zip((g, y, q, k, v), "gyqkv"))
    images, queries, channels = q.shape
    keys, width = k.shape[1], channels // heads
    key_blocks, all_heads = -(-keys // KEYS), images * heads
    parallel = all_heads * queries * keys * width > _SMALL
    runs = min(key_blocks, -(-4 * threads.get_threads() // all_heads)) if parallel else 1
    sizes = Sizes(images, queries, keys, heads, width, runs)
    blocks, padded = -(-queries // QUERIES), _padded(width)
    turned, rows = all_heads * blocks * width * QUERIES, all_heads * blocks * padded * QUERIES
    memory = threads.working_memory("queries", 2 * turned + 2 * rows + 2 * all_heads * blocks * QUERIES)
    shares = threads.working_memory("gradients of queries", runs * turned)
    dq, dk, dv = np.empty(q.shape, np.float32), np.empty(k.shape, np.float32), np.empty(k.shape, np.float32)
    threads.launch(prepare, tuple(sizes), causal, flat(q), flat(k), flat(g), flat(y), memory, parallel=parallel,
                   scratch=(KEYS + 2) * LANES)
    threads.launch(walk, tuple(sizes), causal, flat(k), flat(v), memory, shares, flat(dk), flat(dv), parallel=parallel,
                   scratch=KEYS * (3 * QUERIES + 2 * padded))
    threads.launch(finish, tuple(sizes), shares, flat(dq), parallel=parallel)
    return dq, dk, dv


class Sizes(NamedTuple):
    """Of an attention, and how many runs the keys of a head are divided into."""
    images: int
    queries: int
    keys: int
    heads: int
    width: int
    runs: int


def _padded(width):
    """Columns of whole register tiles."""
    return -(-width // LANES) * LANES


@inlined
def _places(sizes):
    """Where Gᵀ, Q, G, l and δ begin in the memory that `prepare` fills (Qᵀ at 0); sizes of a block of Qᵀ and of Q"""
    blocks = sizes.images * sizes.heads * ((sizes.queries + QUERIES - 1) // QUERIES)
    turned, rows = sizes.width * QUERIES, (sizes.width + LANES - 1) // LANES * LANES * QUERIES
    g_turned = blocks * turned
    q_rows = 2 * g_turned
    g_rows = q_rows + blocks * rows
    sums = g_rows + blocks * rows
    return g_turned, q_rows, g_rows, sums, sums + blocks * QUERIES, turned, rows


@inlined
def _lanes(block, queries):
    """How many queries of a block are computed: whole register tiles"""
    return min(QUERIES, (queries - block * QUERIES + LANES - 1) // LANES * LANES)


@kernel(sizes_of(Sizes), types.boolean, floats_in, floats_in, floats_in, floats_in, floats_out, floats_out, size)
def prepare(thread, counter, sizes, causal, q, k, g, y, memory, scratch, share):
    """A job is a block of queries of a head. Qᵀ is scaled by 1 / √D; missing queries are zeros."""
    sizes = Sizes(*sizes)
    blocks = (sizes.queries + QUERIES - 1) // QUERIES
    g_turned, q_rows, g_rows, sums, deltas, turned, rows = _places(sizes)
    width, channels = sizes.width, sizes.heads * sizes.width
    job = next_job(counter)
    while job < sizes.images * sizes.heads * blocks:
        head, block = divmod(job, blocks)
        first = block * QUERIES
        count, lanes = min(QUERIES, sizes.queries - first), _lanes(block, sizes.queries)
        source = (head // sizes.heads * sizes.queries + first) * channels + head % sizes.heads * width
        _turn(q, source, channels, count, lanes, width, np.float32(1 / math.sqrt(width)), memory, job * turned)
        _turn(g, source, channels, count, lanes, width, np.float32(1), memory, g_turned + job * turned)
        _spread(q, source, channels, count, lanes, width, memory, q_rows + job * rows)
        _spread(g, source, channels, count, lanes, width, memory, g_rows + job * rows)
        for lane in range(lanes):
            delta = np.float32(0)
            if lane < count:
                for d in range(width):
                    delta += load(g, source + lane * channels + d) * load(y, source + lane * channels + d)
            store(memory, deltas + job * QUERIES + lane, delta)
        start = head // sizes.heads * sizes.keys * channels + head % sizes.heads * width
        for half in range(0, lanes, LANES):
            end = min(sizes.keys, first + half + LANES) if causal else sizes.keys
            _logarithms(k, start, channels, end, causal, first + half, width, memory, job * turned + half * width,
                        sums + job * QUERIES + half, scratch, thread * share)
        job = next_job(counter)


@inlined
def _turn(x, start, row, count, lanes, width, factor, memory, target):
    """memory[target:] = xᵀ times a factor, LANES queries and then LANES more, as register tiles take them"""
    for query in range(lanes):
        at = target + query // LANES * LANES * width + query % LANES
        if query < count:
            for d in range(width):
                store(memory, at + d * LANES, load(x, start + query * row + d) * factor)
        else:
            for d in range(width):
                store(memory, at + d * LANES, 0)


@inlined
def _spread(x, start, row, count, lanes, width, memory, target):
    """memory[target:] = x in panels of LANES numbers of each query"""
    for first in range(0, width, LANES):
        for query in range(lanes):
            at = target + first * QUERIES + query * LANES
            numbers = min(LANES, width - first) if query < count else 0
            for d in range(numbers):
                store(memory, at + d, load(x, start + query * row + first + d))
            for d in range(numbers, LANES):
                store(memory, at + d, 0)


@inlined
def _logarithms(k, start, channels, keys, causal, first, width, memory, query, target, scratch, score):
    """memory[target:] = ln Σ e^S for LANES queries, the first of which is number `first`; scratch[score:] to work in"""
    highest, total = score + KEYS * LANES, score + (KEYS + 1) * LANES
    for lane in range(LANES):
        store(scratch, highest + lane, _LOWEST)
        store(scratch, total + lane, 0)
    for block in range(0, keys, KEYS):
        count = min(KEYS, keys - block)
        _products(count, k, start + block * channels, channels, 1, width, memory, query, scratch, score, LANES, False)
        if causal:
            for s in range(count):
                for lane in range(min(LANES, block + s - first)):
                    store(scratch, score + s * LANES + lane, _LOWEST)
        for lane in range(LANES):
            store(memory, target + lane, load(scratch, highest + lane))
        for s in range(count):
            for lane in range(LANES):
                at = score + s * LANES + lane
                store(scratch, highest + lane, max(load(scratch, highest + lane), load(scratch, at)))
        for lane in range(LANES):
            change = exp(load(memory, target + lane) - load(scratch, highest + lane))
            store(scratch, total + lane, load(scratch, total + lane) * change)
        for s in range(count):
            for lane in range(LANES):
                power = exp(load(scratch, score + s * LANES + lane) - load(scratch, highest + lane))
                store(scratch, total + lane, load(scratch, total + lane) + power)
    for lane in range(LANES):
        store(memory, target + lane, load(scratch, highest + lane) + np.float32(math.log(load(scratch, total + lane))))


@inlined
def _products(rows, a, a_start, row_stride, k_stride, depth, b, b_start, c, c_start, c_stride, further):
    """C = A B, or C += A B: `rows` rows of A by a panel of LANES columns"""
    whole = rows // ROWS * ROWS
    for i in range(0, whole, ROWS):
        many_rows(a, a_start + i * row_stride, row_stride, k_stride, b, b_start, c, c_start + i * c_stride, c_stride, depth,
                  further)
    for i in range(whole, rows):
        one_row(a, a_start + i * row_stride, row_stride, k_stride, b, b_start, c, c_start + i * c_stride, c_stride, depth,
                further)


@kernel(sizes_of(Sizes), types.boolean, floats_in, floats_in, floats_in, floats_out, floats_out, floats_out, floats_out, size)
def walk(thread, counter, sizes, causal, k, v, memory, shares, dk, dv, scratch, share):
    """A job is a run of keys of a head, block by block."""
    sizes = Sizes(*sizes)
    blocks = (sizes.queries + QUERIES - 1) // QUERIES
    all_keys = (sizes.keys + KEYS - 1) // KEYS
    job = next_job(counter)
    while job < sizes.images * sizes.heads * sizes.runs:
        head, run = divmod(job, sizes.runs)
        dq = job * blocks * sizes.width * QUERIES
        for i in range(blocks * sizes.width * QUERIES):
            store(shares, dq + i, 0)
        for block in range(all_keys * run // sizes.runs, all_keys * (run + 1) // sizes.runs):
            _keys(head, block * KEYS, min(KEYS, sizes.keys - block * KEYS), blocks, sizes, causal, k, v, memory,
                  shares, dq, dk, dv, scratch, thread * share)
        job = next_job(counter)


@inlined
def _keys(head, first, count, blocks, sizes, causal, k, v, memory, shares, dq, dk, dv, scratch, of_k):
    """dK and dV of `count` keys of a head, and what they add to dQ

    scratch[of_k:] holds dK, dV, then P and dS with all queries of a key in a row, then dS as panels.
    """
    width, channels = sizes.width, sizes.heads * sizes.width
    g_turned, q_rows, g_rows, sums, deltas, turned, rows = _places(sizes)
    padded = (width + LANES - 1) // LANES * LANES
    of_v = of_k + KEYS * padded
    p = of_v + KEYS * padded
    ds = p + KEYS * QUERIES
    panels = ds + KEYS * QUERIES
    start = (head // sizes.heads * sizes.keys + first) * channels + head % sizes.heads * width
    for i in range(2 * KEYS * padded):
        store(scratch, of_k + i, 0)
    for block in range(first // QUERIES if causal else 0, blocks):           # earlier queries don't see these keys
        at, lanes = head * blocks + block, _lanes(block, sizes.queries)
        for half in range(0, lanes, LANES):
            query = at * turned + half * width
            _products(count, k, start, channels, 1, width, memory, query, scratch, p + half, QUERIES, False)
            _products(count, v, start, channels, 1, width, memory, g_turned + query, scratch, ds + half, QUERIES, False)
        hidden = first - block * QUERIES if causal else -KEYS
        _slopes(count, lanes, hidden, memory, sums + at * QUERIES, deltas + at * QUERIES, scratch, p, ds, panels)
        for half in range(0, lanes, LANES):
            _products(width, k, start, 1, channels, count, scratch, panels + half * KEYS,
                      shares, dq + block * turned + half * width, LANES, True)
        for lane in range(0, width, LANES):
            _products(count, scratch, ds, QUERIES, 1, lanes, memory, q_rows + at * rows + lane * QUERIES,
                      scratch, of_k + lane, padded, True)
            _products(count, scratch, p, QUERIES, 1, lanes, memory, g_rows + at * rows + lane * QUERIES,
                      scratch, of_v + lane, padded, True)
    scale = np.float32(1 / math.sqrt(width))
    for s in range(count):
        for d in range(width):
            store(dk, start + s * channels + d, load(scratch, of_k + s * padded + d) * scale)
            store(dv, start + s * channels + d, load(scratch, of_v + s * padded + d))


@inlined
def _slopes(count, lanes, hidden, memory, sums, deltas, scratch, p, ds, panels):
    """P = e^(S − l) and dS = P (dP − δ) in place of S and dP, dS once more in panels

    Key s is hidden from the first `hidden` + s queries of the block.
    """
    for s in range(count):
        for half in range(0, lanes, LANES):
            for lane in range(half, half + LANES):
                at = s * QUERIES + lane
                power = exp(load(scratch, p + at) - load(memory, sums + lane))
                store(scratch, p + at, power)
                store(scratch, ds + at, power * (load(scratch, ds + at) - load(memory, deltas + lane)))
        for lane in range(min(lanes, hidden + s)):
            store(scratch, p + s * QUERIES + lane, 0)
            store(scratch, ds + s * QUERIES + lane, 0)
        for half in range(0, lanes, LANES):
            for lane in range(LANES):
                store(scratch, panels + half * KEYS + s * LANES + lane, load(scratch, ds + s * QUERIES + half + lane))


@kernel(sizes_of(Sizes), floats_in, floats_out)
def finish(thread, counter, sizes, shares, dq):
    """dQ from the shares of all runs. A job is a block of queries of a head."""
    sizes = Sizes(*sizes)
    blocks = (sizes.queries + QUERIES - 1) // QUERIES
    width, channels = sizes.width, sizes.heads * sizes.width
    scale = np.float32(1 / math.sqrt(width))
    job = next_job(counter)
    while job < sizes.images * sizes.heads * blocks:
        head, block = divmod(job, blocks)
        start = (head // sizes.heads * sizes.queries + block * QUERIES) * channels + head % sizes.heads * width
        for query in range(min(QUERIES, sizes.queries - block * QUERIES)):
            source = query // LANES * LANES * width + query % LANES
            for d in range(width):
                total = np.float32(0)
                for run in range(sizes.runs):
                    at = ((head * sizes.runs + run) * blocks + block) * width * QUERIES
                    total += load(shares, at + source + d * LANES)
                store(dq, start + query * channels + d, total * scale)
        job = next_job(counter)
