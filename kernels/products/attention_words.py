"""K and V of an attention as words of two bfloat16, prepared once for all queries: see flash_attention.py.

    K (N, h, S, words)               two neighbours in width in a word: a row of the product K Qᵀ is a key
    V (N, h, ⌈S/2⌉, D)               two neighbouring keys in a word: vectors broadcast the words of Vᵀ one by one
    V (N, h, blocks, D, WORD_KEYS / 2)   with tile registers, which load rows of Vᵀ: a block of keys is turned round

What a word lacks at an odd end is zero. Tile registers take 16 words at a time, and so K is filled up with zeros to a
multiple of that, V with zeros to whole blocks and its D to a multiple of 16 rows. A head's keys follow each other in
either case, so that a block of them takes few lines of the cache.
"""
from typing import NamedTuple

import numpy as np

from ..codegen.bfloat16 import HAS_DOT, make_narrow_run, narrowed
from ..codegen.compiling import floats_in, halves_out, inlined, kernel, sizes_of
from ..codegen.memory import load, next_job, store, store_half
from .amx_tile import HAS_BFLOAT16 as HAS_AMX
from .amx_tile import ROWS, SIDE
from .microkernel import LANES
from .transposition import make_transpose

_ONE, _ZERO = np.float32(1), np.uint16(0)
KEYS = 128                                               # of a block, an even number: P is 16 KB with AVX-512
WORD_KEYS = 64 if HAS_AMX else KEYS                      # of a block of words: with tile registers there are two of P

narrow_run = make_narrow_run(LANES)
turn_pairs = make_transpose(LANES, narrow="in columns")


class Sizes(NamedTuple):
    """Of an attention."""
    images: int
    queries: int
    keys: int
    heads: int
    width: int                                           # of a head


@inlined
def words_of_key(width):
    """From a row of K to the next, and as many rows of words has Qᵀ."""
    words = (width + 1) // 2
    return (words + SIDE - 1) // SIDE * SIDE if HAS_AMX else words


@inlined
def rows_of_values(width):
    """Of Vᵀ, and so of Oᵀ."""
    return (width + SIDE - 1) // SIDE * SIDE if HAS_AMX else width


@inlined
def whole_keys(count):
    """Keys that the product of P and V takes where there are `count`; the others are masked."""
    step = 2 * SIDE if HAS_AMX else 2
    return (count + step - 1) // step * step


def lengths(sizes):
    """Words of K and of V, and of what tiles read beyond them."""
    heads = sizes.images * sizes.heads
    keys = heads * sizes.keys * words_of_key.py_func(sizes.width)
    if not HAS_AMX:
        return keys, heads * -(-sizes.keys // 2) * sizes.width
    rows = heads * -(-sizes.keys // WORD_KEYS) * rows_of_values.py_func(sizes.width)
    return keys + ROWS * words_of_key.py_func(sizes.width), (rows + ROWS) * WORD_KEYS // 2


@inlined
def start_of_keys(head, first, sizes):
    """Where key `first` of a head is in K, in halves of words; heads of all images are counted."""
    return (head * sizes.keys + first) * words_of_key(sizes.width) * 2


@inlined
def start_of_values(head, first, sizes):
    """The same in V; with tile registers `first` begins a block."""
    if HAS_AMX:
        block = head * ((sizes.keys + WORD_KEYS - 1) // WORD_KEYS) + first // WORD_KEYS
        return block * rows_of_values(sizes.width) * WORD_KEYS
    return (head * ((sizes.keys + 1) // 2) + first // 2) * sizes.width * 2


@kernel(sizes_of(Sizes), floats_in, floats_in, halves_out, halves_out, dtype="bfloat16")
def pair(thread, counter, sizes, k, v, k_words, v_words):
    """K and V as words. A job is a block of keys of a head."""
    sizes = Sizes(*sizes)
    channels, blocks, row = sizes.heads * sizes.width, (sizes.keys + WORD_KEYS - 1) // WORD_KEYS, words_of_key(sizes.width)
    job = next_job(counter)
    while job < sizes.images * sizes.heads * blocks:
        head, block = divmod(job, blocks)
        first = block * WORD_KEYS
        count = min(WORD_KEYS, sizes.keys - first)
        source = (head // sizes.heads * sizes.keys + first) * channels + head % sizes.heads * sizes.width
        target = start_of_keys(head, first, sizes)
        for s in range(count):
            if HAS_DOT:
                narrow_run(k, source + s * channels, k_words, target, sizes.width)
            for d in range(sizes.width, 2 * row):
                store_half(k_words, target + d, _ZERO)
            target += 2 * row
        if HAS_AMX:
            _turn_values(v, source, channels, count, sizes.width, v_words, start_of_values(head, first, sizes))
        else:
            _pair_values(v, source, channels, count, sizes.width, v_words, start_of_values(head, first, sizes))
        job = next_job(counter)


@inlined
def _pair_values(v, source, channels, count, width, v_words, target):
    """Words of a block of V with neighbouring keys, for each d of each pair of keys"""
    for key in range((count + 1) // 2 * 2):
        for d in range(width):
            number = narrowed(load(v, source + key * channels + d)) if key < count else _ZERO
            store(v_words, target + (key // 2 * width + d) * 2 + key % 2, number)


@inlined
def _turn_values(v, source, channels, count, width, v_words, target):
    """The same words as rows of Vᵀ, one for each d, which are WORD_KEYS / 2 words long"""
    for first in range(0, whole_keys(count), 2 * SIDE):
        if first + 2 * SIDE <= count and width >= LANES:
            for d in range(0, width, LANES):
                d = min(d, width - LANES)                # the last columns may be turned twice
                turn_pairs(v, source + first * channels + d, channels, _ONE,
                           v_words, target // 2 + d * (WORD_KEYS // 2) + first // 2, WORD_KEYS // 2)
        else:
            for d in range(width):
                for key in range(first, first + 2 * SIDE):
                    number = narrowed(load(v, source + key * channels + d)) if key < count else _ZERO
                    store(v_words, target + d * WORD_KEYS + key, number)
