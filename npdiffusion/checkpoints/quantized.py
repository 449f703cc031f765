"""Kinds of numbers that weights are kept in to be small, and what they decode to.

    F8_E4M3   sign, 4 bits of exponent e, 3 of mantissa m    ± 2^(e − 7) · (1 + m/8), below e = 1: ± 2^−6 · m/8;
              no infinity, e = 15 with m = 7 is NaN          (Micikevicius et al. 2022, arXiv:2209.05433)
    F8_E5M2   the upper byte of a float16
    F64       rounded to float32

The others are GGUF's, from llama.cpp. A block of 32 numbers shares a scale d, a float16, and perhaps a least value m:

    Q8_0      w = d · q             q from −128 to 127
    Q4_0      w = d · (q − 8)       q from 0 to 15                    Q5_0   w = d · (q − 16)       q from 0 to 31
    Q4_1      w = d · q + m                                           Q5_1   w = d · q + m

In a block of 256 ("K"), groups of 16 or 32 numbers have scales s (and minima m) of their own, which are themselves
quantised, with d (and d′) in common:

    Q2_K, Q4_K, Q5_K      w = d · s · q − d′ · m        q of 2, 4, 5 bits, in groups of 16, 32, 32
    Q3_K, Q6_K            w = d · s · q                 q from −4 to 3, from −32 to 31, in groups of 16

Functions below: blocks, uint8 (n, bytes) → float32 (n, values). The bits of a number may be spread over a block.
"""
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Kind(NamedTuple):
    """Numbers come in blocks of so many `values`, each of `size` bytes; `gives`: the type of array they are read as.

    decode: from blocks, uint8 (n, size), to (n, values); None if they are read as they are stored
    """
    values: int
    size: int
    gives: str
    decode: Callable | None = None


def e4m3():
    """float16 (256,): what each byte stands for; all of them are float16 numbers"""
    bits = np.arange(128)
    exponent, mantissa = bits >> 3, bits & 7
    positive = np.where(exponent > 0, 2.0 ** (exponent - 7) * (1 + mantissa / 8), 2.0 ** -6 * mantissa / 8)
    positive[127] = np.nan
    return np.concatenate([positive, -positive]).astype(np.float16)


E4M3 = e4m3()


def float8_e4m3(blocks):
    """uint8 (n, 1) → float16 (n, 1)"""
    return E4M3[blocks]


def float8_e5m2(blocks):
    """uint8 (n, 1) → float16 (n, 1)"""
    return (blocks.astype("<u2") << 8).view("<f2")


def float64(blocks):
    """uint8 (n, 8) → float32 (n, 1), rounded; infinite where it is too large"""
    with np.errstate(over="ignore"):
        return blocks.view("<f8").astype(np.float32)


# ---- blocks of 32

def float16_at(blocks, start):
    """The float16 that begins at that byte of each block → float32 (n, 1)"""
    return np.ascontiguousarray(blocks[:, start:start + 2]).view("<f2").astype(np.float32)


def nibbles(packed):
    """uint8 (n, k) → (n, 2k): the lower halves of all bytes, then the upper ones"""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def fifth_bits(packed):
    """uint8 (n, 4) → (n, 32): bit j of the 32 is number j's, worth 16"""
    word = np.ascontiguousarray(packed).view("<u4")
    return (word >> np.arange(32, dtype=np.uint32) & 1).astype(np.uint8) << 4


def q8_0(blocks):
    """2 bytes d, 32 q"""
    return float16_at(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def q4_0(blocks):
    """2 bytes d, 16 q"""
    return float16_at(blocks, 0) * (nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def q4_1(blocks):
    """2 bytes d, 2 m, 16 q"""
    return float16_at(blocks, 0) * nibbles(blocks[:, 4:]).astype(np.float32) + float16_at(blocks, 2)


def q5_0(blocks):
    """2 bytes d, 4 fifth bits, 16 q"""
    q = nibbles(blocks[:, 6:]) | fifth_bits(blocks[:, 2:6])
    return float16_at(blocks, 0) * (q.astype(np.float32) - 16)


def q5_1(blocks):
    """2 bytes d, 2 m, 4 fifth bits, 16 q"""
    q = nibbles(blocks[:, 8:]) | fifth_bits(blocks[:, 4:8])
    return float16_at(blocks, 0) * q.astype(np.float32) + float16_at(blocks, 2)


# ---- blocks of 256

PAIRS = np.array([0, 2, 4, 6], np.uint8)[:, None]          # where in a byte its pairs of bits begin
BITS = np.arange(8, dtype=np.uint8)[:, None]


def pairs(packed):
    """uint8 (n, 64) → (n, 8, 32): of each half of the bytes first their lowest pairs of bits, then the next, …"""
    return (packed.reshape(-1, 2, 1, 32) >> PAIRS & 3).reshape(-1, 8, 32)


def scales_and_minima(packed):
    """uint8 (n, 12) → s, m: (n, 8) each, of 6 bits: the last four of each have their upper two bits in the first eight bytes"""
    first, second, third = (packed[:, i:i + 4] for i in (0, 4, 8))
    s = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=1)
    m = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=1)
    return s.astype(np.float32), m.astype(np.float32)


def grouped(q, d, s, d_min=None, m=None):
    """d · s · q − d′ · m      q: (n, 256); d, d′: (n, 1); s, m: (n, groups)"""
    groups = s.shape[1]
    w = (d * s)[..., None] * q.reshape(-1, groups, 256 // groups).astype(np.float32)
    if m is not None:
        w -= (d_min * m)[..., None]
    return w.reshape(-1, 256)


def q2_k(blocks):
    """16 bytes s (lower halves) and m (upper), 64 q, 2 d, 2 d′"""
    s, m = blocks[:, :16] & 15, blocks[:, :16] >> 4
    return grouped(pairs(blocks[:, 16:80]), float16_at(blocks, 80), s.astype(np.float32), float16_at(blocks, 82),
                   m.astype(np.float32))


def q3_k(blocks):
    """32 bytes third bits (bit j: run j of 32 numbers), 64 lower bits of q, 12 s, 2 d"""
    third = blocks[:, None, :32] >> BITS & 1
    q = (pairs(blocks[:, 32:96]) | third << 2).astype(np.int8) - 4
    packed = blocks[:, 96:108]
    s = nibbles(packed[:, :8]) | (packed[:, None, 8:] >> PAIRS & 3).reshape(-1, 16) << 4
    return grouped(q, float16_at(blocks, 108), s.astype(np.float32) - 32)


def q4_k(blocks):
    """2 bytes d, 2 d′, 12 s and m, 128 q: each 32 bytes hold two groups, one in their lower halves, one in their upper"""
    s, m = scales_and_minima(blocks[:, 4:16])
    return grouped(nibbles(blocks[:, 16:].reshape(-1, 32)), float16_at(blocks, 0), s, float16_at(blocks, 2), m)


def q5_k(blocks):
    """2 bytes d, 2 d′, 12 s and m, 32 fifth bits (bit j: group j), 128 q as in Q4_K"""
    s, m = scales_and_minima(blocks[:, 4:16])
    q = nibbles(blocks[:, 48:].reshape(-1, 32)).reshape(-1, 8, 32) | (blocks[:, None, 16:48] >> BITS & 1) << 4
    return grouped(q, float16_at(blocks, 0), s, float16_at(blocks, 2), m)


def q6_k(blocks):
    """128 bytes lower halves of q, 64 upper pairs, 16 s, 2 d"""
    low = nibbles(blocks[:, :128].reshape(-1, 64)).reshape(-1, 8, 32)
    q = (low | pairs(blocks[:, 128:192]) << 4).astype(np.int8) - 32
    return grouped(q, float16_at(blocks, 208), blocks[:, 192:208].view(np.int8).astype(np.float32))


DECODED = {"F64": Kind(1, 8, "<f4", float64), "F8_E4M3": Kind(1, 1, "<f2", float8_e4m3),
           "F8_E5M2": Kind(1, 1, "<f2", float8_e5m2)} | {
    decode.__name__.upper(): Kind(values, size, "<f4", np.errstate(over="ignore", invalid="ignore")(decode))
    for values, size, decode in ((32, 34, q8_0), (32, 18, q4_0), (32, 20, q4_1), (32, 22, q5_0), (32, 24, q5_1),
                                 (256, 84, q2_k), (256, 110, q3_k), (256, 144, q4_k), (256, 176, q5_k), (256, 210, q6_k))}
