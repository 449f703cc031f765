"""Kinds of numbers that weights are kept in to be small, and what they decode to.

    F8_E4M3   sign, 4 bits of exponent e, 3 of mantissa m    ± 2^(e − 7) · (1 + m/8), below e = 1: ± 2^−6 · m/8;
              no infinity, e = 15 with m = 7 is NaN          (Micikevicius et al. 2022, arXiv:2209.05433)
    F8_E5M2   the upper byte of a float16
    F64       rounded to float32
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


DECODED = {"F64": Kind(1, 8, "<f4", float64), "F8_E4M3": Kind(1, 1, "<f2", float8_e4m3),
           "F8_E5M2": Kind(1, 1, "<f2", float8_e5m2)}
