"""The compiled twins of steps.py, by the same names: one pass over the memory. A job is a run of numbers."""
import math

import numpy as np
from numba import types

from . import steps, threads
from .arrays import flat
from .codegen.compiling import floats_in, floats_out, kernel, size
from .codegen.memory import load, next_job, store

_JOB = 8192                                              # numbers; 128 KB of four arrays
_SMALL = 4 * _JOB                                        # that are not worth waking threads for
_numbers = types.UniTuple(types.float64, 8)


def adam(value, gradient, mean, square, step, rate, betas=(0.9, 0.999), eps=1e-8, decay=0.0, apart=False):
    """As in steps.py, which takes what is not contiguous float32"""
    arrays = value, gradient, mean, square
    if not all(x.dtype == np.float32 and x.flags.carray and x.shape == value.shape for x in arrays):
        return steps.adam(*arrays, step, rate, betas, eps, decay, apart)
    one, two = betas
    kept, added = (1 - rate * decay, 0.0) if apart else (1.0, decay)
    numbers = kept, added, 1 - one, two, 1 - two, 1 / math.sqrt(1 - two ** step), eps, rate / (1 - one ** step)
    threads.launch(adam_run, value.size, numbers, *map(flat, arrays), parallel=value.size > _SMALL)


@kernel(size, _numbers, floats_out, floats_in, floats_out, floats_out)
def adam_run(thread, counter, count, numbers, value, gradient, mean, square):
    """numbers: θ ← kept θ, g ← g + added θ, of which one does nothing; then root is √(v̂ / v), and rate brings m to m̂ as well"""
    kept, added = np.float32(numbers[0]), np.float32(numbers[1])
    new, old, new_square = np.float32(numbers[2]), np.float32(numbers[3]), np.float32(numbers[4])
    root, eps, rate = np.float32(numbers[5]), np.float32(numbers[6]), np.float32(numbers[7])
    start = next_job(counter) * _JOB
    while start < count:
        for i in range(start, min(start + _JOB, count)):
            theta = kept * load(value, i)
            g = load(gradient, i) + added * theta
            m = load(mean, i) + new * (g - load(mean, i))
            v = old * load(square, i) + new_square * (g * g)
            store(mean, i, m)
            store(square, i, v)
            store(value, i, theta - rate * m / (math.sqrt(v) * root + eps))
        start = next_job(counter) * _JOB
