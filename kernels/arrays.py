"""What the fast twins accept: float32 arrays in any memory layout. Kernels themselves see flat, contiguous memory.

NumPy has no bfloat16: an array of uint16 holds its bits.
"""
import math
from typing import Any

import numpy as np

Array = np.ndarray                                      # float32, unless a docstring says otherwise
Weight = Any                                            # an Array of the checkpoint's shape, packed or not, or what has `read`

CACHE_LINE = 16                                         # floats in 64 bytes, which also is the longest vector
_LARGE = 1 << 16                                        # numbers that are worth 2 µs for finding such a place


def float32(x, name):
    """`x` as a contiguous float32 array: copied if its memory is laid out otherwise, widened (exactly) from float16.

    TypeError for other types: float64 would lose precision in silence, integers are hardly ever meant.
    """
    x = np.asarray(x)
    if x.dtype == np.float32 and x.flags.carray:         # contiguous, aligned, writable: by far the most common
        return x
    if x.dtype not in (np.float32, np.float16):
        raise TypeError(f"{name} is {x.dtype}, but the numba backend computes in float32: convert it first")
    return np.require(x, np.float32, ["C", "A"])


def as_float32(x):
    """float32 numbers from bfloat16 (uint16), float16, float32 or an `Int8`, exactly; other types stay as they are."""
    if hasattr(x, "widened"):
        return x.widened()
    if x.dtype == np.uint16:
        return (x.astype(np.uint32) << 16).view(np.float32)          # the upper half of a float32
    return x.astype(np.float32) if x.dtype == np.float16 else x


def shaped(x, shape, name):
    """`x` as flat, contiguous float32; ValueError if its shape is not `shape`. Kernels trust this for their bounds."""
    x = float32(x, name)
    if x.shape != shape:
        raise ValueError(f"{name} has shape {x.shape}, but {shape} is needed")
    return flat(x)


def flat(x):
    """All elements of a contiguous array in one row, without a copy."""
    return x.reshape(-1)


def aligned(length):
    """Flat float32 memory that begins on a cache line, so that vectors do not straddle two; not initialised."""
    memory = np.empty(length + CACHE_LINE, np.float32)
    return memory[-(memory.ctypes.data // 4) % CACHE_LINE:][:length]


def is_aligned(x):
    """Whether an array begins on a cache line."""
    return x.ctypes.data % (4 * CACHE_LINE) == 0


def empty(shape):
    """A float32 array for a result, not initialised; a large one begins on a cache line."""
    length = math.prod(shape)
    return np.empty(shape, np.float32) if length < _LARGE else aligned(length).reshape(shape)
