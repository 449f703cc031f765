"""Gradients of group and layer norm; statistics are those of the forward pass (normalization.py), computed again.

    y = γ x̂ + β, x̂ = (x − μ) r, r = 1 / √(σ² + ε)
    dβ = Σ d      dγ = Σ d x̂      dx = r (γ d − m₁ − x̂ m₂),  m₁ = mean(γ d), m₂ = mean(γ d x̂)

d is g, or g silu′(y) where silu follows. The means of a group are sums over its channels of γ times what dβ and dγ are
made of, so group norm takes two passes after that of the statistics: sums of d and d x̂ for each band of pixels and
channel, then dx. Where there are images enough for all threads, a job takes both of one, which stays in the cache. With
silu the first pass leaves d where dx will be, for its exponential costs more than the way to memory.
"""
import math

import numpy as np
from numba import types

from .. import threads
from ..arrays import flat, float32, shaped
from ..codegen.compiling import floats_in, floats_out, inlined, kernel, reordered, size, sizes_of
from ..codegen.memory import load, next_job, store
from ..normalization import Sizes, bands_of, doubles, merged, row_statistics, statistics
from .elementwise import silu_slope

_SMALL = 30_000                                          # elements that are not worth waking threads for
_RUN = 32                                                # pixels whose sums are taken in float32
SUMS, SLOPES, BOTH = range(3)                            # what a call of `group_norm_back` does


def group_norm_gradient(g, x, weight, bias, groups, eps, with_silu):
    """→ dx (N, H, W, C), dγ (C,), dβ (C,)      g, x: (N, H, W, C)   with_silu: whether y went through silu"""
    g, x = float32(g, "g"), float32(x, "x")
    channels = x.shape[-1]
    weight, bias = shaped(weight, (channels,), "weight"), shaped(bias, (channels,), "bias")
    dx = np.empty(x.shape, np.float32)
    sizes, parallel = bands_of(x, groups)
    partial = statistics(x, sizes, parallel)
    sums = np.empty((sizes.images, sizes.bands, 2, channels), np.float64)
    enough = not parallel or sizes.images >= 2 * threads.get_threads()
    for part in (BOTH,) if enough else (SUMS, SLOPES):
        threads.launch(group_norm_back, tuple(sizes), eps, part, with_silu, flat(x), flat(g), weight, bias, partial, flat(sums),
                       flat(dx), parallel=parallel, scratch=8 * channels)
    of_bias, of_weight = sums.sum(axis=(0, 1)).astype(np.float32)
    return dx, of_weight, of_bias


@kernel(sizes_of(Sizes), types.float64, size, types.boolean, floats_in, floats_in, floats_in, floats_in, doubles,
        doubles, floats_out, floats_out, size)
def group_norm_back(thread, counter, sizes, eps, part, with_silu, x, g, weight, bias, partial, sums, dx, memory, share):
    """SUMS: Σ d, Σ d x̂ of each band; then SLOPES: dx. A job is a band of an image's pixels; of BOTH, a whole image.

    memory: a row of channels each for μ, r, γ, β, the two sums, γ-weighted means m₁ and m₂
    """
    sizes = Sizes(*sizes)
    channels = sizes.channels
    jobs = 1 if part == BOTH else sizes.bands            # of an image
    at = thread * share
    job = next_job(counter)
    while job < sizes.images * jobs:
        image = job // jobs
        first = 0 if part == BOTH else job % jobs
        last = sizes.bands if part == BOTH else first + 1
        _rows_of_channels(image, sizes, eps, weight, bias, partial, memory, at)
        if part != SLOPES:
            for band in range(first, last):
                start, pixels = _band(image, band, sizes)
                target = (image * sizes.bands + band) * 2 * channels
                _sum(start, pixels, channels, with_silu, x, g, memory, at, sums, target, dx)
        if part != SUMS:
            _means(image, sizes, sums, memory, at)
            for band in range(first, last):
                start, pixels = _band(image, band, sizes)
                if with_silu:
                    _write(start, pixels, channels, x, dx, memory, at, dx)
                else:
                    _write(start, pixels, channels, x, g, memory, at, dx)
        job = next_job(counter)


@inlined
def _band(image, number, sizes):
    """Where a band of an image begins in x, and how many pixels it has"""
    first = number * sizes.band
    return (image * sizes.pixels + first) * sizes.channels, min(sizes.band, sizes.pixels - first)


@inlined
def _rows_of_channels(image, sizes, eps, weight, bias, partial, memory, at):
    """μ, r, γ, β of each channel to memory[at:]"""
    channels = sizes.channels
    width = channels // sizes.groups
    for group in range(sizes.groups):
        count, mean, m2 = merged(image, group, sizes, partial)
        scale = 1 / math.sqrt(m2 / count + eps)
        for c in range(group * width, (group + 1) * width):
            memory[at + c], memory[at + channels + c] = mean, scale
            memory[at + 2 * channels + c], memory[at + 3 * channels + c] = weight[c], bias[c]


@inlined
def _sum(start, pixels, channels, with_silu, x, g, memory, at, sums, target, slopes):
    """sums[target:] = Σ d, then Σ d x̂ of each channel, `_RUN` pixels at a time in float32; with silu, slopes = d"""
    scale, weight, bias = at + channels, at + 2 * channels, at + 3 * channels
    plain, sloped = at + 4 * channels, at + 5 * channels
    for c in range(2 * channels):
        sums[target + c] = 0
    for run in range(0, pixels, _RUN):
        for c in range(2 * channels):
            store(memory, plain + c, 0)
        for p in range(run, min(run + _RUN, pixels)):
            source = start + p * channels
            if with_silu:
                for c in range(channels):
                    z = (load(x, source + c) - load(memory, at + c)) * load(memory, scale + c)
                    d = load(g, source + c) * silu_slope(z * load(memory, weight + c) + load(memory, bias + c))
                    store(slopes, source + c, d)
                    store(memory, plain + c, load(memory, plain + c) + d)
                    store(memory, sloped + c, load(memory, sloped + c) + d * z)
            else:
                for c in range(channels):
                    z = (load(x, source + c) - load(memory, at + c)) * load(memory, scale + c)
                    d = load(g, source + c)
                    store(memory, plain + c, load(memory, plain + c) + d)
                    store(memory, sloped + c, load(memory, sloped + c) + d * z)
        for c in range(2 * channels):
            sums[target + c] += load(memory, plain + c)


@inlined
def _means(image, sizes, sums, memory, at):
    """m₁ and m₂ of its group for each channel, to the last two rows of memory[at:]"""
    channels = sizes.channels
    width = channels // sizes.groups
    for group in range(sizes.groups):
        plain, sloped = 0.0, 0.0
        for band in range(sizes.bands):
            source = (image * sizes.bands + band) * 2 * channels
            for c in range(group * width, (group + 1) * width):
                gamma = float(memory[at + 2 * channels + c])
                plain += gamma * sums[source + c]
                sloped += gamma * sums[source + channels + c]
        for c in range(group * width, (group + 1) * width):
            memory[at + 6 * channels + c] = plain / (sizes.pixels * width)
            memory[at + 7 * channels + c] = sloped / (sizes.pixels * width)


@inlined
def _write(start, pixels, channels, x, slopes, memory, at, dx):
    """dx of a band from d, the slopes"""
    scale, weight, plain, sloped = at + channels, at + 2 * channels, at + 6 * channels, at + 7 * channels
    for p in range(pixels):
        source = start + p * channels
        for c in range(channels):
            z = (load(x, source + c) - load(memory, at + c)) * load(memory, scale + c)
            store(dx, source + c, load(memory, scale + c) * (load(slopes, source + c) * load(memory, weight + c)
                                                             - load(memory, plain + c) - z * load(memory, sloped + c)))


def layer_norm_gradient(g, x, weight, eps):
    """→ dx (..., C), dγ (C,), dβ (C,)      g, x: (..., C)"""
    g, x = float32(g, "g"), float32(x, "x")
    channels = x.shape[-1]
    rows = x.size // channels
    dx = np.empty(x.shape, np.float32)
    parallel = x.size > _SMALL
    jobs = min(4 * threads.get_threads(), -(-rows // _RUN)) if parallel else 1
    sums = np.empty((jobs, 2, channels), np.float64)
    weight = shaped(weight, (channels,), "weight")
    threads.launch(layer_norm_back, rows, channels, jobs, eps, flat(x), flat(g), weight, flat(sums), flat(dx),
                   parallel=parallel, scratch=2 * channels)
    of_bias, of_weight = sums.sum(axis=0).astype(np.float32)
    return dx, of_weight, of_bias


@kernel(size, size, size, types.float64, floats_in, floats_in, floats_in, doubles, floats_out, floats_out, size)
def layer_norm_back(thread, counter, rows, channels, jobs, eps, x, g, weight, sums, dx, memory, share):
    """A job is a run of rows; sums[job] = Σ d, then Σ d x̂ of each channel."""
    at = thread * share
    job = next_job(counter)
    while job < jobs:
        target = job * 2 * channels
        for c in range(2 * channels):
            sums[target + c] = 0
        end = rows * (job + 1) // jobs
        for first in range(rows * job // jobs, end, _RUN):
            for c in range(2 * channels):
                store(memory, at + c, 0)
            for row in range(first, min(first + _RUN, end)):
                _layer_norm_row(row * channels, channels, eps, x, g, weight, dx, memory, at)
            for c in range(2 * channels):
                sums[target + c] += load(memory, at + c)
        job = next_job(counter)


@reordered
def _row_means(x, g, weight, start, channels, centre, rest, scale):
    """m₁ and m₂ of a row"""
    plain, sloped = np.float32(0), np.float32(0)
    for c in range(channels):
        d = load(g, start + c) * load(weight, c)
        plain += d
        sloped += d * ((load(x, start + c) - centre - rest) * scale)
    return plain / np.float32(channels), sloped / np.float32(channels)


@inlined
def _layer_norm_row(start, channels, eps, x, g, weight, dx, memory, at):
    centre, rest, scale = row_statistics(x, start, channels, eps)
    plain, sloped = _row_means(x, g, weight, start, channels, centre, rest, scale)
    for c in range(channels):
        z, d = (load(x, start + c) - centre - rest) * scale, load(g, start + c)
        store(memory, at + c, load(memory, at + c) + d)
        store(memory, at + channels + c, load(memory, at + channels + c) + d * z)
        store(dx, start + c, scale * (d * load(weight, c) - plain - z * sloped))
