"""Memory that one array leaves is the best place for the next.

glibc maps each array of more than 32 MB anew and unmaps it in the end, and whenever the heap ends in 64 MB that are
free, it gives those back as well. The system then has to clear the same pages over and over again: an eighth of the time of a
decoder at 512×512. mallopt(3) can tell it otherwise; with another C library nothing happens.
"""
import contextlib
import ctypes
import os
import threading

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8          # M_... of malloc.h
_lock, _within = threading.Lock(), 0         # how many are within, of all threads: the settings are the process's


def _after_fork():
    """In a child process: no thread of it is within."""
    global _lock, _within
    _lock, _within = threading.Lock(), 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextlib.contextmanager
def memory_reused():
    """Within, memory of arrays that are gone stays with the process, for those to come; afterwards it is given back."""
    global _within
    libc = _glibc()
    if libc is None:
        yield
        return
    with _lock:
        if _within == 0:
            libc.malloc_trim(0)              # what other threads freed is of no use to this one: loading leaves much
            libc.mallopt(_MMAP_MAX, 0)
            libc.mallopt(_TRIM_THRESHOLD, -1)        # never
        _within += 1
    try:
        yield
    finally:
        with _lock:
            _within -= 1
            if _within == 0:
                libc.mallopt(_MMAP_MAX, 65536)       # the defaults
                libc.mallopt(_TRIM_THRESHOLD, 64 << 20)
                libc.malloc_trim(0)


def one_heap():
    """Have all threads share one heap, before they are started, unless the user has set how many there may be.

    A thread's own heap is never given back as a whole: threads that read weights leave a third of a model behind, each time.
    """
    libc = _glibc()
    if libc is not None and "MALLOC_ARENA_MAX" not in os.environ:
        libc.mallopt(_ARENA_MAX, 1)


def give_back():
    """Give memory of arrays that are gone back to the system, which glibc would keep for others."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc():
    """The C library of this process if it is glibc, else None."""
    try:
        return ctypes.CDLL(None) if os.confstr("CS_GNU_LIBC_VERSION") else None
    except (AttributeError, OSError, ValueError):        # no confstr, or it doesn't know the name
        return None
