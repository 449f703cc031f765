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
by f = 2^(m_old − m). So softmax needs no step across lanes, 2^(P − m) is already the operand that the tile wants next, and
rows of K and V are read where the linear layer wrote them. Powers of two, not of e: log₂ e is part of the scale on Q.

In bfloat16 both products take words of two terms (`bfloat16`): K's are neighbours in width and V's are neighbouring
keys, which `attention_words` prepares once for all queries; Q is rounded when it is scaled, and 2^(P − m) when it is
computed. Where the processor has tile registers (`amx_tile`) these multiply the words, those of the next block of keys
while powers of this one are computed: a processor runs instructions of both kinds at a time if they come in turns.
"""
import math

import numpy as np
from numba import types

from .. import threads
from ..arrays import empty, flat, float32
from ..codegen.bfloat16 import HAS_DOT, store_factor
from ..codegen.compiling import floats_in, floats_out, halves_in, inlined, kernels_for, size, sizes_of
from ..codegen.memory import load, next_job, store
from . import amx_tile
from . import attention_words as words
from .amx_tile import HAS_BFLOAT16 as HAS_AMX
from .attention_words import KEYS, WORD_KEYS, Sizes
from .microkernel import LANES, PRODUCT, make_tile
from .running_softmax import LOWEST, make_powers, make_raise_maximum, make_scale
from .transposition import make_transpose

ROWS = 8 if PRODUCT.rows > 8 else 4                      # divides the usual head widths: 40, 64, 80, 160, 512
QUERIES = PRODUCT.columns                                # of a job
_MASKED, _ONE = np.float32(LOWEST), np.float32(1)
_SMALL = 200_000                                         # multiply-adds that are not worth waking threads for

many_rows = make_tile(PRODUCT._replace(rows=ROWS))
one_row = make_tile(PRODUCT._replace(rows=1))            # for what is left over
raise_maximum, powers, scale = make_raise_maximum(PRODUCT), make_powers(PRODUCT), make_scale(PRODUCT)
narrow_powers = make_powers(PRODUCT, narrow=True) if HAS_DOT else powers
transpose = make_transpose(LANES)
transpose_narrowed = make_transpose(LANES, narrow="in rows") if HAS_DOT else transpose


def attention(q, k, v, heads, causal=False, dtype="float32"):
    """softmax(Q Kᵀ / √D) V for each head      q: (N, T, h·D)   k, v: (N, S, h·D)   → (N, T, h·D)

    With `causal`, query t sees keys 0..t alone (T = S). dtype: "float32", or "bfloat16" for the factors of products,
    where the processor multiplies them (elsewhere it would be slower and is the same as float32).
    ValueError if the shapes do not fit.
    """
    q, k, v = float32(q, "q"), float32(k, "k"), float32(v, "v")
    images, queries, channels = q.shape
    keys = k.shape[1]
    if k.shape != v.shape or k.shape != (images, keys, channels) or channels % heads or keys < 1:
        raise ValueError(f"attention of {heads} heads cannot take q {q.shape}, k {k.shape}, v {v.shape}")
    if causal and queries != keys:
        raise ValueError(f"causal attention needs as many keys as queries, not {keys} and {queries}")
    y = empty(q.shape)
    width = channels // heads
    sizes = tuple(Sizes(images, queries, keys, heads, width))
    k, v, parallel = flat(k), flat(v), images * queries * keys * channels > _SMALL
    dtype = dtype if dtype in attend else "float32"
    if dtype == "bfloat16":
        k_words, v_words = (threads.working_memory(purpose, length).view(np.uint16)
                            for purpose, length in zip(("keys", "values"), words.lengths(Sizes(*sizes))))
        threads.launch(words.pair, sizes, k, v, k_words, v_words, parallel=parallel)
        k, v = k_words, v_words
    threads.launch(attend[dtype], sizes, causal, flat(q), k, v, flat(y),
                   parallel=parallel, scratch=(2 * (width + amx_tile.SIDE) + max(KEYS, 2 * WORD_KEYS) + 3) * QUERIES)
    return y


def _signature(factors):
    return sizes_of(Sizes), types.boolean, floats_in, factors, factors, floats_out, floats_out, size


@kernels_for(float32=_signature(floats_in), **({"bfloat16": _signature(halves_in)} if HAS_DOT else {}))
def attend(thread, counter, sizes, causal, q, k, v, y, memory, share):
    """Jobs go through the queries of a head first: threads that run at the same time read the same keys."""
    sizes = Sizes(*sizes)
    blocks = (sizes.queries + QUERIES - 1) // QUERIES
    job = next_job(counter)
    while job < sizes.images * sizes.heads * blocks:
        head, block = divmod(job, blocks)
        if HAS_AMX and k.itemsize == 2:
            amx_tile.configure()
        _attend_block(head // sizes.heads, head % sizes.heads, block * QUERIES, sizes, causal, q, k, v, y,
                      memory, thread * share)
        if HAS_AMX and k.itemsize == 2:
            amx_tile.release()
        job = next_job(counter)


@inlined
def _attend_block(image, head, first, sizes, causal, q, k, v, y, memory, query):
    """Queries first … first + QUERIES − 1 of one head; memory[query:] holds Qᵀ, Oᵀ, P of a block, with tile registers that of
    the next as well, then m, l and f of each lane."""
    keys, heads, width = sizes.keys, sizes.heads, sizes.width
    terms = 4 // k.itemsize                              # of a word: 1 float32 or 2 bfloat16
    by_amx, keys_at_once = HAS_AMX and terms == 2, KEYS if terms == 1 else WORD_KEYS
    channels = heads * width
    k_row, v_row = (channels, channels) if terms == 1 else (words.words_of_key(width), width)      # from a row to the next
    output = query + (width if terms == 1 else k_row) * QUERIES
    score = output + words.rows_of_values(width) * QUERIES
    next_score = score + WORD_KEYS * QUERIES if by_amx else score
    maximum = next_score + keys_at_once * QUERIES
    total, factor = maximum + QUERIES, maximum + 2 * QUERIES
    lanes = min(QUERIES, sizes.queries - first)
    q_row = (image * sizes.queries + first) * channels + head * width

    _transpose_queries(q, q_row, channels, lanes, width, memory, query, k)
    for lane in range(QUERIES):
        store(memory, maximum + lane, _MASKED)
        store(memory, total + lane, 0)

    end = min(keys, first + lanes) if causal else keys   # later keys are masked for every query of the block
    for start in range(0, end, keys_at_once):
        count = min(keys_at_once, end - start)
        if terms == 1:
            k_start = v_start = (image * keys + start) * channels + head * width
        else:
            k_start = words.start_of_keys(image * heads + head, start, sizes)
            v_start = words.start_of_values(image * heads + head, start, sizes)
        if start == 0 or not by_amx:
            _scores(count, k, k_start, k_row, width, memory, query, score)
        if causal and start + count > first + 1:
            for s in range(count):
                for lane in range(min(QUERIES, start + s - first)):
                    store(memory, score + s * QUERIES + lane, _MASKED)
        if terms == 2:
            for i in range(count * QUERIES, words.whole_keys(count) * QUERIES):
                store(memory, score + i, _MASKED)
        raised = raise_maximum(memory, score, count, maximum, total, factor)
        if by_amx:
            left = min(keys_at_once, end - start - keys_at_once)
            for part in range(0, count, amx_tile.ROWS):
                narrow_powers(memory, score, part, amx_tile.ROWS, maximum, total)
                if part < left:
                    _scores(min(amx_tile.ROWS, left - part), k, k_start + 2 * (keys_at_once + part) * k_row, k_row, width,
                            memory, query, next_score + part * QUERIES)
        elif terms == 2:
            narrow_powers(memory, score, 0, words.whole_keys(count), maximum, total)
        else:
            powers(memory, score, 0, count, maximum, total)
        if start > 0 and raised:                         # rarely, for m is a whole number
            scale(memory, output, width, factor)
        _accumulate(count, v, v_start, v_row, width, memory, score, output, start > 0)
        if by_amx:
            score, next_score = next_score, score

    for lane in range(QUERIES):
        store(memory, factor + lane, np.float32(1) / load(memory, total + lane))
    scale(memory, output, width, factor)
    _transpose_outputs(memory, output, lanes, width, y, q_row, channels)


@inlined
def _transpose_queries(q, start, row, lanes, width, memory, target, k):
    """memory[target:] = Qᵀ in factors that go with k: rows of QUERIES words, log₂ e / √D times what is in q[start:]

    Vectors of lanes may overlap where the width is not a multiple; missing queries, and words that are not full, take
    the way number by number.
    """
    terms = 4 // k.itemsize
    scale = np.float32(math.log2(math.e) / math.sqrt(width))
    if lanes == QUERIES and width >= terms * LANES and width % terms == 0:
        for lane in range(0, QUERIES, LANES):
            for d in range(0, width, terms * LANES):
                d = min(d, width - terms * LANES)
                at = target + d // terms * QUERIES + lane
                if terms == 1:
                    transpose(q, start + lane * row + d, row, scale, memory, at, QUERIES)
                else:
                    transpose_narrowed(q, start + lane * row + d, row, scale, memory, at, QUERIES)
    else:
        for i in range((width + terms - 1) // terms * QUERIES):
            store(memory, target + i, 0)
        for lane in range(lanes):
            for d in range(width):
                at = ((d // terms) * QUERIES + lane) * terms + d % terms
                store_factor(memory, target * terms + at, load(q, start + lane * row + d) * scale, k)
    if terms == 2:                                       # rows that meet the zeros with which keys are filled up
        for i in range((width + 1) // 2 * QUERIES, words.words_of_key(width) * QUERIES):
            store(memory, target + i, 0)


@inlined
def _transpose_outputs(memory, output, lanes, width, y, start, row):
    """y[start:], rows of a matrix, = the columns of Oᵀ"""
    if lanes == QUERIES and width >= LANES:
        for lane in range(0, QUERIES, LANES):
            for d in range(0, width, LANES):
                d = min(d, width - LANES)
                transpose(memory, output + d * QUERIES + lane, QUERIES, _ONE, y, start + lane * row + d, row)
    else:
        for lane in range(lanes):
            for d in range(width):
                store(y, start + lane * row + d, load(memory, output + d * QUERIES + lane))


@inlined
def _scores(count, k, k_start, row, width, memory, query, score):
    """P = K Qᵀ for `count` keys"""
    terms = 4 // k.itemsize
    if HAS_AMX and terms == 2:
        amx_tile.multiply_rows(count, k, k_start // 2, row, memory, query, memory, score, QUERIES, row, False)
    else:
        whole = count // ROWS * ROWS
        for s in range(0, whole, ROWS):
            many_rows(k, k_start + s * row * terms, row, 1, memory, query,
                      memory, score + s * QUERIES, QUERIES, width, False)
        for s in range(whole, count):
            one_row(k, k_start + s * row * terms, row, 1, memory, query,
                    memory, score + s * QUERIES, QUERIES, width, False)


@inlined
def _accumulate(count, v, v_start, row, width, memory, score, output, further):
    """Oᵀ = Vᵀ P for the first `count` keys, Oᵀ += Vᵀ P for further ones"""
    terms = 4 // v.itemsize
    if HAS_AMX and terms == 2:
        amx_tile.multiply_rows(width, v, v_start // 2, WORD_KEYS // 2, memory, score, memory, output, QUERIES,
                               words.whole_keys(count) // 2, further)
    else:
        whole = width // ROWS * ROWS
        for d in range(0, whole, ROWS):
            many_rows(v, v_start + d * terms, 1, row, memory, score,
                      memory, output + d * QUERIES, QUERIES, count, further)
        for d in range(whole, width):
            one_row(v, v_start + d * terms, 1, row, memory, score,
                    memory, output + d * QUERIES, QUERIES, count, further)
