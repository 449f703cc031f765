"""Gradients of what works element by element, and of nearest neighbours, in one pass over the memory.

    silu           dx = g σ (1 + x (1 − σ))                   quick-gelu     the same of 1.702 x
    gelu           dx = g (Φ(x) + x φ(x))                     φ(x) = e^(−x²/2) / √2π
    v · gelu(w)    dv = g gelu(w), dw = g v gelu′(w)
    used twice     dx = a + b, of both
    nearest        dx[r, c] = Σ g over the pixels that x[r, c] was copied to
"""
import math
from typing import NamedTuple

import numpy as np

from .. import gradients, threads
from ..activations import GELU, QUICK_GELU, SILU, gelu_of
from ..arrays import flat, float32
from ..codegen.compiling import floats_in, floats_out, inlined, kernel, size, sizes_of
from ..codegen.exponential import exp
from ..codegen.memory import load, next_job, store

_ONE, _HALF, _QUICK = np.float32(1), np.float32(0.5), np.float32(1.702)
_SQRT_HALF, _DENSITY = np.float32(math.sqrt(0.5)), np.float32(1 / math.sqrt(2 * math.pi))
_P = np.float32(0.3275911)                               # erf as in activations.py
_A1, _A2, _A3 = np.float32(0.254829592), np.float32(-0.284496736), np.float32(1.421413741)
_A4, _A5 = np.float32(-1.453152027), np.float32(1.061405429)
_JOB = 8192                                              # elements of a job


def activation_gradient(g, x, which):
    """g f′(x), f: SILU, GELU or QUICK_GELU"""
    g, x = float32(g, "g"), float32(x, "x")
    dx = np.empty(x.shape, np.float32)
    threads.launch(activate_back, x.size, which, flat(x), flat(g), flat(dx), parallel=x.size > 4 * _JOB)
    return dx


def gate_gradient(g, gated):
    """The gradient of (v, w) in v · gelu(w)      g: (..., C)   gated: (v, w) side by side, (..., 2 C), → like it"""
    g, gated = float32(g, "g"), float32(gated, "gated")
    result = np.empty(gated.shape, np.float32)
    channels = g.shape[-1]
    threads.launch(gate_back, g.size // channels, channels, flat(gated), flat(g), flat(result), parallel=g.size > 4 * _JOB)
    return result


def total(a, b, owned=False):
    """a + b, as in gradients.py, which takes what is small or not contiguous float32"""
    if a.size <= 4 * _JOB or any(x.dtype != np.float32 or not x.flags.carray for x in (a, b)):
        return gradients.total(a, b, owned)
    result = a if owned else np.empty(a.shape, np.float32)
    threads.launch(add, a.size, flat(a), flat(b), flat(result))
    return result


def cell_sums(g, height, width):
    """(N, height of g, width of g, C) → (N, height, width, C), see above"""
    g = float32(g, "g")
    dx = np.empty((len(g), height, width, g.shape[3]), np.float32)
    sizes = tuple(Cells(*g.shape, height, width))
    threads.launch(cells, sizes, flat(g), flat(dx), parallel=g.size > 4 * _JOB)
    return dx


@inlined
def silu_slope(x):
    """silu′ of one float32"""
    sigmoid = _ONE / (_ONE + exp(-x))
    return sigmoid * (_ONE + x * (_ONE - sigmoid))


@inlined
def _quick_gelu_slope(x):
    sigmoid = _ONE / (_ONE + exp(-_QUICK * x))
    return sigmoid * (_ONE + _QUICK * x * (_ONE - sigmoid))


@inlined
def _gelu_slope(x):
    z = abs(x) * _SQRT_HALF
    t = _ONE / (_ONE + _P * z)
    power = exp(-z * z)
    half = _HALF * ((((_A5 * t + _A4) * t + _A3) * t + _A2) * t + _A1) * t * power           # Φ(−|x|)
    return (half if x < 0 else _ONE - half) + x * _DENSITY * power


@kernel(size, size, floats_in, floats_in, floats_out)
def activate_back(thread, counter, count, which, x, g, dx):
    """A job is a run of elements."""
    start = next_job(counter) * _JOB
    while start < count:
        end = min(start + _JOB, count)
        if which == SILU:
            for i in range(start, end):
                store(dx, i, load(g, i) * silu_slope(load(x, i)))
        elif which == GELU:
            for i in range(start, end):
                store(dx, i, load(g, i) * _gelu_slope(load(x, i)))
        elif which == QUICK_GELU:
            for i in range(start, end):
                store(dx, i, load(g, i) * _quick_gelu_slope(load(x, i)))
        start = next_job(counter) * _JOB


@kernel(size, floats_in, floats_in, floats_out)
def add(thread, counter, count, a, b, result):
    """A job is a run of elements."""
    start = next_job(counter) * _JOB
    while start < count:
        for i in range(start, min(start + _JOB, count)):
            store(result, i, load(a, i) + load(b, i))
        start = next_job(counter) * _JOB


@kernel(size, size, floats_in, floats_in, floats_out)
def gate_back(thread, counter, rows, channels, gated, g, result):
    """A job is a row."""
    row = next_job(counter)
    while row < rows:
        value, at = 2 * row * channels, row * channels
        gate = value + channels
        for c in range(channels):
            store(result, value + c, load(g, at + c) * gelu_of(load(gated, gate + c)))
        for c in range(channels):
            store(result, gate + c, load(g, at + c) * load(gated, value + c) * _gelu_slope(load(gated, gate + c)))
        row = next_job(counter)


class Cells(NamedTuple):
    """Of g, then the size of x."""
    images: int
    height: int
    width: int
    channels: int
    rows: int
    columns: int


@kernel(sizes_of(Cells), floats_in, floats_out)
def cells(thread, counter, sizes, g, dx):
    """A job is a row of an image of x. Row i of g was copied from row ⌊i · rows / height⌋ of x."""
    sizes = Cells(*sizes)
    channels = sizes.channels
    job = next_job(counter)
    while job < sizes.images * sizes.rows:
        image, row = divmod(job, sizes.rows)
        top = (row * sizes.height + sizes.rows - 1) // sizes.rows
        bottom = ((row + 1) * sizes.height + sizes.rows - 1) // sizes.rows
        for column in range(sizes.columns):
            target = (job * sizes.columns + column) * channels
            left = (column * sizes.width + sizes.columns - 1) // sizes.columns
            right = ((column + 1) * sizes.width + sizes.columns - 1) // sizes.columns
            for c in range(channels):
                store(dx, target + c, 0)
            for i in range(top, bottom):
                for j in range(left, right):
                    source = ((image * sizes.height + i) * sizes.width + j) * channels
                    for c in range(channels):
                        store(dx, target + c, load(dx, target + c) + load(g, source + c))
        job = next_job(counter)
