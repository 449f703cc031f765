"""Group and layer normalisation, with statistics that survive a mean far from zero.

    y = γ · (x − μ) / √(σ² + ε) + β

σ² as E[x²] − E[x]² loses everything when |μ| ≫ σ. Here deviations are taken from an estimate m of the mean, which may be
rough because the sums of d = x − m correct it: the mean of the pixels before, at first that of a single pixel (Chan, Golub &
LeVeque 1983, "Algorithms for computing the sample variance"):

    μ = m + Σd / n      M₂ = Σ (x − μ)² = Σd² − (Σd)² / n

and runs of pixels are merged by  M₂ = M₂ₐ + M₂ᵦ + (μᵦ − μₐ)² nₐ nᵦ / n  in float64. Group norm therefore takes two
passes over the image: partial statistics of some bands of pixels, then each band is normalised with the merged ones.
"""
import math
from typing import NamedTuple

import numpy as np
from numba import types

from . import threads
from .activations import silu_of
from .arrays import empty, flat, float32, shaped
from .codegen import streaming
from .codegen.compiling import floats_in, floats_out, inlined, kernel, reordered, size, sizes_of
from .codegen.memory import load, next_job, store
from .deviations import add_deviations
from .products.microkernel import LANES
from .scaling import make_scaling

_RUN = 64                                                # pixels whose sums are taken in float32
_SMALL = 30_000                                          # elements that are not worth waking threads for
_ROWS = 16                                               # rows of a job of layer norm

doubles = types.Array(types.float64, 1, "C")

scaled, silu_scaled, stream_scaled, stream_silu = (make_scaling(with_silu, streamed)
                                                   for streamed in (False, True) for with_silu in (False, True))


def group_norm(x, weight, bias, groups, eps):
    """y = γ (x − μ) / √(σ² + ε) + β, with μ and σ² over the H · W pixels and C / groups channels of a group.

    x: (N, H, W, C)   weight γ, bias β: (C,)   → (N, H, W, C)          Wu & He 2018, arXiv:1803.08494
    """
    return _group_norm(x, weight, bias, groups, eps, False)


def group_norm_silu(x, weight, bias, groups, eps):
    """silu(group_norm(x)), in one pass over the memory."""
    return _group_norm(x, weight, bias, groups, eps, True)


def _group_norm(x, weight, bias, groups, eps, with_silu):
    x = float32(x, "x")
    channels = x.shape[-1]
    if channels % groups:
        raise ValueError(f"{channels} channels cannot be divided into {groups} groups")
    weight, bias = shaped(weight, (channels,), "weight"), shaped(bias, (channels,), "bias")
    y = empty(x.shape)
    if x.size == 0:
        return y
    sizes, parallel = bands_of(x, groups)
    partial = statistics(x, sizes, parallel)
    threads.launch(group_norm_bands, tuple(sizes), eps, True, with_silu, streaming.suits(y, channels), flat(x), weight, bias,
                   partial, flat(y), parallel=parallel, scratch=3 * channels)
    return y


def bands_of(x, groups):
    """(Sizes, whether they are worth several threads) of a group norm      x: (N, ..., C)"""
    images, channels, pixels = x.shape[0], x.shape[-1], math.prod(x.shape[1:-1])
    parallel = x.size > _SMALL
    most = max(8, 2 * threads.get_threads())             # of an image, fewer of each where there are many: merging takes time
    bands = min(most, -(-2 * most // images), -(-pixels // _RUN)) if parallel else 1
    band = -(-pixels // bands)
    return Sizes(images, pixels, channels, groups, -(-pixels // band), band), parallel


def statistics(x, sizes, parallel):
    """Mean and M₂ of each band of pixels and group      x: contiguous → flat float64, (N, bands, groups, 2)"""
    partial, nothing = np.empty(sizes.images * sizes.bands * sizes.groups * 2, np.float64), np.empty(0, np.float32)
    threads.launch(group_norm_bands, tuple(sizes), 0.0, False, False, False, flat(x), nothing, nothing, partial, nothing,
                   parallel=parallel, scratch=3 * sizes.channels)
    return partial


def layer_norm(x, weight, bias, eps):
    """y = γ (x − μ) / √(σ² + ε) + β over the last axis      x: (..., C)          Ba et al. 2016, arXiv:1607.06450"""
    x = float32(x, "x")
    channels = x.shape[-1]
    weight, bias = shaped(weight, (channels,), "weight"), shaped(bias, (channels,), "bias")
    y = empty(x.shape)
    threads.launch(layer_norm_rows, x.size // channels, channels, eps, flat(x), weight, bias, flat(y),
                   parallel=x.size > _SMALL)
    return y


class Sizes(NamedTuple):
    """Of images, and of the bands of pixels that jobs are made of."""
    images: int
    pixels: int                                          # of an image
    channels: int
    groups: int
    bands: int                                           # of an image
    band: int                                            # pixels of one, but fewer in the last


@kernel(sizes_of(Sizes), types.float64, types.boolean, types.boolean, types.boolean, floats_in, floats_in, floats_in, doubles,
        floats_out, floats_out, size)
def group_norm_bands(thread, counter, sizes, eps, normalize, with_silu, streams, x, weight, bias, partial, y, memory, share):
    """First call: partial statistics; second call (`normalize`): the result. A job is a band of an image's pixels."""
    sizes = Sizes(*sizes)
    channels = sizes.channels
    job = next_job(counter)
    while job < sizes.images * sizes.bands:
        image, number = divmod(job, sizes.bands)
        first, last = number * sizes.band, min((number + 1) * sizes.band, sizes.pixels)
        start = (image * sizes.pixels + first) * channels
        if normalize:
            _scale_and_shift(image, sizes, eps, weight, bias, partial, memory, thread * share)
            _normalize_band(start, last - first, channels, with_silu, streams, x, y, memory, thread * share)
        else:
            _band_statistics(start, last - first, channels, sizes.groups, x, partial, job * sizes.groups * 2,
                             memory, thread * share)
        job = next_job(counter)


@inlined
def _merge(count, mean, m2, other_count, other_mean, other_m2):
    """Statistics of the union of two samples."""
    total = count + other_count
    delta = other_mean - mean
    return (total, mean + delta * other_count / total, m2 + other_m2 + delta * delta * count * other_count / total)


@inlined
def _band_statistics(start, pixels, channels, groups, x, partial, target, memory, sums):
    """partial[target + 2 g], [… + 1] = mean and M₂ of group g over a band; memory[sums:] has room for 3 · channels"""
    width = channels // groups
    centre, squares = sums + channels, sums + 2 * channels
    for g in range(2 * groups):
        partial[target + g] = 0
    for run in range(0, pixels, _RUN):
        rows = min(_RUN, pixels - run)
        for g in range(groups):                          # an estimate of a group's mean, at each of its channels
            centre_of = np.float32(partial[target + 2 * g])
            if run == 0:
                centre_of = _mean(x, start + g * width, width)
            for c in range(g * width, (g + 1) * width):
                store(memory, centre + c, centre_of)
        add_deviations(x, start + run * channels, rows, channels, memory, centre, sums, squares)
        for g in range(groups):
            total, square = 0.0, 0.0
            for c in range(g * width, (g + 1) * width):
                total += load(memory, sums + c)
                square += load(memory, squares + c)
            count = float(rows * width)
            mean = load(memory, centre + g * width) + total / count
            _, mean, m2 = _merge(float(run * width), partial[target + 2 * g], partial[target + 2 * g + 1],
                                 count, mean, square - total * total / count)
            partial[target + 2 * g], partial[target + 2 * g + 1] = mean, m2


@inlined
def _mean(x, start, count):
    """Of a few numbers"""
    total = 0.0
    for i in range(count):
        total += load(x, start + i)
    return np.float32(total / count)


@inlined
def merged(image, group, sizes, partial):
    """(count, mean, M₂) of a group from those of its bands, as `statistics` gives them"""
    count, mean, m2 = 0.0, 0.0, 0.0
    for number in range(sizes.bands):
        at = ((image * sizes.bands + number) * sizes.groups + group) * 2
        in_band = float(min(sizes.band, sizes.pixels - number * sizes.band) * (sizes.channels // sizes.groups))
        count, mean, m2 = _merge(count, mean, m2, in_band, partial[at], partial[at + 1])
    return count, mean, m2


@inlined
def _scale_and_shift(image, sizes, eps, weight, bias, partial, memory, mean_at):
    """For each channel: the mean to memory[mean_at:], γ / √(σ² + ε) and β behind it."""
    channels = sizes.channels
    width = channels // sizes.groups
    for g in range(sizes.groups):
        count, mean, m2 = merged(image, g, sizes, partial)
        scale = 1 / math.sqrt(m2 / count + eps)
        for c in range(g * width, (g + 1) * width):
            memory[mean_at + c] = mean
            memory[mean_at + channels + c] = scale * weight[c]
            memory[mean_at + 2 * channels + c] = bias[c]


@inlined
def _normalize_band(start, pixels, channels, with_silu, streams, x, y, memory, mean):
    """y = (x − mean) · scale + shift, or silu of that, for pixels of `channels` numbers from x[start] on.

    memory[mean:] holds the three for each channel, as `_scale_and_shift` leaves them.
    """
    scale, shift = mean + channels, mean + 2 * channels
    whole = channels // LANES * LANES
    for at in range(start, start + pixels * channels, channels):
        if streams and with_silu:
            for c in range(0, whole, LANES):
                stream_silu(x, at + c, memory, mean + c, scale + c, shift + c, y, at + c)
        elif streams:
            for c in range(0, whole, LANES):
                stream_scaled(x, at + c, memory, mean + c, scale + c, shift + c, y, at + c)
        elif with_silu:
            for c in range(0, whole, LANES):
                silu_scaled(x, at + c, memory, mean + c, scale + c, shift + c, y, at + c)
        else:
            for c in range(0, whole, LANES):
                scaled(x, at + c, memory, mean + c, scale + c, shift + c, y, at + c)
        for c in range(whole, channels):
            z = (load(x, at + c) - load(memory, mean + c)) * load(memory, scale + c) + load(memory, shift + c)
            store(y, at + c, silu_of(z) if with_silu else z)


@kernel(size, size, types.float64, floats_in, floats_in, floats_in, floats_out)
def layer_norm_rows(thread, counter, rows, channels, eps, x, weight, bias, y):
    """A job is a few rows."""
    first = next_job(counter) * _ROWS
    while first < rows:
        for row in range(first, min(first + _ROWS, rows)):
            _layer_norm_row(row * channels, channels, eps, x, weight, bias, y)
        first = next_job(counter) * _ROWS


@inlined
def _layer_norm_row(start, channels, eps, x, weight, bias, y):
    centre, rest, scale = row_statistics(x, start, channels, eps)
    for c in range(channels):
        store(y, start + c, (load(x, start + c) - centre - rest) * scale * load(weight, c) + load(bias, c))


@inlined
def row_statistics(x, start, channels, eps):
    """(m, μ − m, 1 / √(σ² + ε)) of `channels` numbers; in two parts, because μ may need more digits than one has"""
    centre = np.float32(_sum(x, start, channels) / np.float32(channels))
    total, square = _deviations(x, start, channels, centre)
    variance = max(0.0, square - float(total) * total / channels) / channels
    return centre, total / np.float32(channels), np.float32(1 / math.sqrt(variance + eps))


@reordered
def _sum(x, start, count):
    """Σ x, in the lanes of vectors, which also keeps rounding errors small"""
    total = np.float32(0)
    for i in range(count):
        total += load(x, start + i)
    return total


@reordered
def _deviations(x, start, count, centre):
    """Σ d and Σ d² for d = x − centre"""
    total, square = np.float32(0), np.float32(0)
    for i in range(count):
        d = load(x, start + i) - centre
        total += d
        square += d * d
    return total, square
