"""How many threads kernels use, and launching them from any Python thread.

numba keeps its thread count per Python thread and, with the layer called workqueue, aborts the process when two Python
threads run parallel kernels at once. So the count is kept here and passed to numba at each launch, and workqueue gets a
lock; the layers tbb and omp, which numba prefers where they are installed, need none.

Inside a kernel the threads share jobs out among themselves: each takes the next number from a common counter until none
is left. A thread that the operating system has put aside then delays one job, not a fixed share of the work. Those that
wait for it go to sleep soon: by default OpenMP lets them spin for milliseconds, on the very core that it may need, which
makes a small picture up to 25 times slower on a busy machine.
"""
import contextlib
import functools
import os
import threading

import numpy as np

from .arrays import CACHE_LINE, aligned
from .errors import BackendError
from .machine import physical_cores

SPINS = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}   # rounds of GNU's OpenMP, milliseconds of LLVM's and Intel's
_FORKED = ("a process that was forked after the numba backend ran can't run it again, because GNU's OpenMP doesn't survive a "
           "fork: start processes with multiprocessing.get_context('spawn'), or set NUMBA_THREADING_LAYER=workqueue")
_count = None
_lost = False                                            # whether this is such a process
_local = threading.local()


def set_threads(count=None):
    """Let kernels use `count` threads, in every Python thread; None: the physical cores. ValueError if below 1.

    numba starts no more threads than there are logical cores (or NUMBA_NUM_THREADS): a larger count acts as that.
    """
    global _count
    if count is not None and count < 1:
        raise ValueError(f"number of threads must be at least 1, not {count}")
    _count = count


def get_threads():
    """The number of threads that kernels use."""
    if _count is None:
        set_threads(physical_cores())
    return _count


@contextlib.contextmanager
def alone():
    """Within, kernels that this Python thread launches run on it alone: for work that Python threads share out."""
    _local.alone = True
    try:
        yield
    finally:
        _local.alone = False


@functools.cache
def start_threads():
    """Start numba's threads, before a kernel is compiled, which would do so, too.

    OpenMP reads its variables meanwhile: these are set for so long, if the user has set none of them.
    """
    import numba
    ours = {} if {"OMP_WAIT_POLICY", *SPINS} & os.environ.keys() else SPINS
    os.environ.update(ours)
    try:
        numba.set_num_threads(1)
    except ValueError as error:
        reason = " ".join(str(error).split()).replace("$ ", "")
        raise BackendError(f"NUMBA_THREADING_LAYER is {numba.config.THREADING_LAYER!r}: {reason}; or unset it") from None
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _after_fork():
    """In a child process, whose parent may have started numba's threads."""
    global _lost
    _guard.cache_clear()                                 # a thread that held the lock does not exist here
    if start_threads.cache_info().currsize:
        import numba
        if numba.threading_layer() == "omp":
            from numba.np.ufunc import omppool
            _lost = omppool.openmp_vendor == "GNU"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def _guard():
    """What a launch must hold: a lock for workqueue, nothing for the thread-safe layers."""
    import numba
    return threading.Lock() if numba.threading_layer() == "workqueue" else contextlib.nullcontext()


def launch(kernel, *arguments, parallel=True, scratch=None):
    """kernel(thread, counter, *arguments) on all threads at once, or on one if not `parallel` (too little work to share).

    `counter` is a fresh array of one zero, from which `memory.next_job` hands out jobs. With `scratch`, the number of
    floats that each thread needs to work in, two more arguments follow: that memory, and the size of a thread's share.
    BackendError in a process that was forked from one which ran kernels, if its threads don't survive that.
    """
    import numba
    if _lost:
        raise BackendError(_FORKED)
    if kernel.compiled is None:
        kernel.compile()
    parallel = parallel and not getattr(_local, "alone", False)
    count = min(get_threads(), numba.config.NUMBA_NUM_THREADS) if parallel else 1
    if scratch is not None:
        share = -(-scratch // CACHE_LINE) * CACHE_LINE
        arguments = (*arguments, working_memory("scratch", count * share), share)
    with _guard():
        kernel.compiled(count, (np.zeros(1, np.int64), *arguments))


def working_memory(purpose, length):
    """Flat float32 memory of arbitrary content, at least `length` long; each Python thread keeps one for a purpose."""
    memory = getattr(_local, purpose, None)
    if memory is None or memory.size < length:
        memory = aligned(length)
        memory.fill(0)                                   # tiles compute ragged edges in full: let that be plain numbers
        setattr(_local, purpose, memory)
    return memory
