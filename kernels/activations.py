"""SiLU, GELU, quick-GELU and ReLU, element by element.

    silu(x) = x / (1 + e⁻ˣ)      quick_gelu(x) = x / (1 + e^(−1.702 x))      gelu(x) = x/2 · (1 + erf(x/√2))

erf after Abramowitz & Stegun 1964, 7.1.26, wrong by 1.5e-7 at most:

    1 − erf(z) = (a₁t + a₂t² + a₃t³ + a₄t⁴ + a₅t⁵) e^(−z²)      t = 1 / (1 + 0.3275911 z), z ≥ 0
"""
import math

import numpy as np

from . import threads
from .arrays import empty, flat, float32
from .codegen.compiling import floats_in, floats_out, inlined, kernel, size
from .codegen.exponential import exp
from .codegen.memory import load, next_job, store

SILU, GELU, QUICK_GELU, RELU = range(4)
_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)
_SQRT_HALF, _QUICK = np.float32(math.sqrt(0.5)), np.float32(-1.702)
_P = np.float32(0.3275911)
_A1, _A2, _A3 = np.float32(0.254829592), np.float32(-0.284496736), np.float32(1.421413741)
_A4, _A5 = np.float32(-1.453152027), np.float32(1.061405429)
_JOB = 8192                                              # elements; 32 KB in, 32 KB out


def silu(x):
    """x · σ(x)          Elfwing et al. 2017, arXiv:1702.03118"""
    return _activate(x, SILU)


def gelu(x):
    """x · Φ(x) = x/2 · (1 + erf(x/√2))          Hendrycks & Gimpel 2016, arXiv:1606.08415"""
    return _activate(x, GELU)


def quick_gelu(x):
    """x · σ(1.702 x), the approximation of GELU that CLIP was trained with (Radford et al. 2021, arXiv:2103.00020)"""
    return _activate(x, QUICK_GELU)


def relu(x):
    """max(x, 0)          Nair & Hinton 2010, which found it better than sigmoids for training"""
    return _activate(x, RELU)


def _activate(x, which):
    x = float32(x, "x")
    y = empty(x.shape)
    threads.launch(activate, x.size, which, flat(x), flat(y), parallel=x.size > 4 * _JOB)
    return y


@inlined
def silu_of(x):
    """silu of one float32"""
    return x / (_ONE + exp(-x))


@inlined
def quick_gelu_of(x):
    """quick_gelu of one float32"""
    return x / (_ONE + exp(_QUICK * x))


@inlined
def gelu_of(x):
    """gelu of one float32: for x < 0, x/2 · erfc(|x|/√2), without cancellation"""
    z = abs(x) * _SQRT_HALF
    t = _ONE / (_ONE + _P * z)
    erfc = ((((_A5 * t + _A4) * t + _A3) * t + _A2) * t + _A1) * t * exp(-z * z)
    return (x if x > 0 else _ZERO) - _HALF * abs(x) * erfc


@kernel(size, size, floats_in, floats_out)
def activate(thread, counter, count, which, x, y):
    """A job is a run of elements."""
    start = next_job(counter) * _JOB
    while start < count:
        _activate_run(start, min(start + _JOB, count), which, x, y)
        start = next_job(counter) * _JOB


@inlined
def _activate_run(start, end, which, x, y):
    if which == SILU:
        for i in range(start, end):
            store(y, i, silu_of(load(x, i)))
    elif which == GELU:
        for i in range(start, end):
            store(y, i, gelu_of(load(x, i)))
    elif which == QUICK_GELU:
        for i in range(start, end):
            store(y, i, quick_gelu_of(load(x, i)))
    else:
        for i in range(start, end):
            store(y, i, _ZERO if load(x, i) < 0 else load(x, i))        # NaN is not below 0 and stays
