"""Exponentials in a form that a processor runs in vectors: no branches, no calls, right to one unit in the last place.

    2ˣ = 2ⁿ · 2ᶠ      n = round(x), f = x − n, |f| ≤ 1/2                          2ᶠ and eʳ by polynomials of degree 6
    eˣ = 2ⁿ · eʳ      n = round(x / ln 2), r = x − n ln 2, |r| ≤ ln 2 / 2

ln 2 is subtracted in two parts (Cody & Waite 1980), the first with so few digits that n times it is exact. Adding
1.5 · 2²³ rounds to an integer and leaves it in the low bits of the sum, from where it moves into the exponent.
NaN gives NaN. Below 2⁻¹²⁶ the result stays there instead of becoming subnormal; above 2^127.5 it is infinite.
"""
import math

import numpy as np
from llvmlite import ir

from .compiling import inlined

_ROUND = np.float32(1.5 * 2**23)
_ONE = np.float32(1)
_BIAS, _MANTISSA = np.int32(127 << 23), np.int32(23)     # float32: 23 bits below the exponent, which is stored + 127
_LOG2_E = np.float32(1 / math.log(2))
_LN2_HIGH, _LN2_LOW = np.float32(355 / 512), np.float32(math.log(2) - 355 / 512)
_LOWEST_E, _HIGHEST_E = np.float32(-126 * math.log(2)), np.float32(128 * math.log(2))

# Minimax in relative error (2e-9 and 3e-9), fitted by iteratively reweighted least squares (Lawson 1961).
_POWERS = (1, 0.69314718, 0.24022648, 0.055503324, 0.009618438, 0.0013398901, 0.00015353342)
_E2, _E3, _E4 = np.float32(0.49999994), np.float32(0.16666521), np.float32(0.04166839)
_E5, _E6 = np.float32(0.008368717), np.float32(0.0013814599)


@inlined
def _clamp(x, low, high):
    x = low if x < low else x                            # in this order NaN passes through
    return high if x > high else x


@inlined
def _power_of_two(rounded):
    """2ⁿ from n + 1.5 · 2²³"""
    bits = np.float32(rounded).view(np.int32)
    return np.int32((bits << _MANTISSA) + _BIAS).view(np.float32)


@inlined
def exp(x):
    """eˣ, float32"""
    x = _clamp(x, _LOWEST_E, _HIGHEST_E)
    rounded = x * _LOG2_E + _ROUND
    n = rounded - _ROUND
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = ((((_E6 * r + _E5) * r + _E4) * r + _E3) * r + _E2) * r * r + r + _ONE
    return p * _power_of_two(rounded)


def emit_rounded(builder, x):
    """Write LLVM code for the whole number nearest to x, where x is a vector; beyond ±2²² for one of the nearest."""
    magic = ir.Constant(x.type, [float(_ROUND)] * x.type.count)
    return builder.fsub(builder.fadd(x, magic), magic)


def emit_exp2(builder, multiply_add, x):
    """Write LLVM code for 2ˣ, x ≤ 2, where x is a vector; `multiply_add(a, b, c)` writes a · b + c.

    The bias of an exponent is added together with 1.5 · 2²³, so that low bits of the sum are an exponent as it is stored.
    """
    def constant(value):
        return ir.Constant(x.type, [value] * x.type.count)

    integers = ir.VectorType(ir.IntType(32), x.type.count)
    x = builder.select(builder.fcmp_ordered("<", x, constant(-126.0)), constant(-126.0), x)
    rounded = builder.fadd(x, constant(float(_ROUND) + 127))
    f = builder.fsub(x, builder.fsub(rounded, constant(float(_ROUND) + 127)))
    p = constant(_POWERS[-1])
    for coefficient in _POWERS[-2::-1]:
        p = multiply_add(p, f, constant(float(coefficient)))
    exponent = builder.shl(builder.bitcast(rounded, integers), ir.Constant(integers, [23] * integers.count))
    return builder.fmul(p, builder.bitcast(exponent, x.type))


def emit_exp(builder, multiply_add, x):
    """Write LLVM code for eˣ as `exp` computes it, where x is a vector; `multiply_add(a, b, c)` writes a · b + c."""
    def constant(value):
        return ir.Constant(x.type, [float(value)] * x.type.count)

    integers = ir.VectorType(ir.IntType(32), x.type.count)
    for bound, beyond in ((_LOWEST_E, "<"), (_HIGHEST_E, ">")):
        x = builder.select(builder.fcmp_ordered(beyond, x, constant(bound)), constant(bound), x)
    rounded = multiply_add(x, constant(_LOG2_E), constant(_ROUND))
    n = builder.fsub(rounded, constant(_ROUND))
    r = multiply_add(n, constant(-_LN2_LOW), multiply_add(n, constant(-_LN2_HIGH), x))
    p = constant(_E6)
    for coefficient in (_E5, _E4, _E3, _E2):
        p = multiply_add(p, r, constant(coefficient))
    p = builder.fadd(multiply_add(builder.fmul(p, r), r, r), constant(_ONE))
    exponent = builder.shl(builder.bitcast(rounded, integers), ir.Constant(integers, [int(_MANTISSA)] * integers.count))
    exponent = builder.add(exponent, ir.Constant(integers, [int(_BIAS)] * integers.count))
    return builder.fmul(p, builder.bitcast(exponent, x.type))
