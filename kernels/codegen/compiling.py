"""Compiling kernels with numba: one signature each, kept on disk, so that only the first run of a machine compiles.

`@kernel(signature)` declares an entry point. It is compiled, or loaded from the cache, when first launched, for that
signature alone: a call with other types is an error instead of a second, silent compilation. Functions that kernels
call are `inlined`; they become part of the kernel's machine code and need no cache entry of their own.
"""
import functools
import itertools
import os
import threading
import types as python_types
import warnings

import numba
from numba import types

from .. import environment
from ..threads import start_threads
from . import cache, inlining
from .processes import compile_together
from .sharing import share_out

environment.check()

# Fused multiply-add is welcome. Reordering sums is not: compensated sums and the splitting of ln 2 would be lost.
# NaN stays NaN, because a caller wants to find it.
FASTMATH = {"contract", "nsz"}

inlined = functools.partial(inlining.inlined, fastmath=FASTMATH)
reordered = functools.partial(inlining.inlined, fastmath=FASTMATH | {"reassoc"})                      # sums as vectors

size = types.intp
floats_in = types.Array(types.float32, 1, "C", readonly=True)       # takes writable arrays as well
floats_out = types.Array(types.float32, 1, "C")
halves_in = types.Array(types.uint16, 1, "C", readonly=True)        # bfloat16, or memory of any other content
halves_out = types.Array(types.uint16, 1, "C")
integers_out = types.Array(types.int64, 1, "C")


def sizes_of(fields):
    """The type as which kernels take a NamedTuple of whole numbers: a plain tuple, to which `fields(*sizes)` gives its
    names back. numba takes 1.5 µs longer to recognise a named one, at each launch."""
    return types.UniTuple(size, len(fields._fields))


_kernels = []
_lock = threading.Lock()
_noted = False                                           # that kernels can't be kept


def _renew_lock():
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):                      # a thread that held it does not exist in the child
    os.register_at_fork(after_in_child=_renew_lock)


class kernel:
    """Decorator: what each thread does; numba compiles it for one signature when `compile` is called.

    signature: types of the arguments after the first two, which are the same for all: the number of the thread, and the
    counter from which it takes its jobs, see `threads.launch`     dtype: of the weights, if it serves only one

    `compiled(threads, (counter, ...))` runs it on so many threads.
    """

    def __init__(self, *signature, dtype=None):
        self.signature, self.dtype = types.void(size, types.Tuple((integers_out, *signature))), dtype

    def __call__(self, function):
        self.name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"
        self.function, self.compiled = function, None
        _kernels.append(self)
        return self

    def compile(self):
        """Load the kernel from the cache, or compile it (a second or so)."""
        with _lock:
            if self.compiled is None:                    # another Python thread may have done it meanwhile
                start_threads()
                self.compiled = self._loaded_or_compiled()
                self.compiled.disable_compile()

    def is_cached(self):
        """True if `compile` will find machine code on disk that is as it was written."""
        dispatcher = self._dispatcher()
        return dispatcher is not None and self._entry(dispatcher).is_intact()

    def _loaded_or_compiled(self):
        dispatcher = self._dispatcher()
        if dispatcher is not None:
            entry = self._entry(dispatcher)
            if not entry.is_intact():
                entry.discard()
            try:
                dispatcher.compile(self.signature)
                if dispatcher.stats.cache_misses:
                    entry.write_seal()
            except Exception as error:      # noqa: BLE001, a mistake in the kernel itself is raised again below
                entry.discard()
                if isinstance(error, OSError):
                    _note(entry.path, error)
            if dispatcher.overloads:                     # it is compiled, whether it could be kept or not
                return dispatcher
        dispatcher = _jit(self.function)
        dispatcher.compile(self.signature)
        return dispatcher

    def _dispatcher(self):
        """numba's object, not compiled yet, whose files go to our folder; None if there can be none."""
        before = numba.config.CACHE_DIR
        try:
            numba.config.CACHE_DIR = str(cache.folder())
            return _jit(self.function, cache=True)
        except (OSError, RuntimeError) as error:         # numba's own way to say that a folder can't be written to
            _note(cache.folder(), error)
            return None
        finally:
            numba.config.CACHE_DIR = before

    def _entry(self, dispatcher):
        return cache.Entry(dispatcher.stats.cache_path, self.name)


def _shared_out(threads, arguments):
    share_out(each_thread, threads, arguments)           # noqa: F821 (a global that `_jit` gives it)


def _jit(function, **options):
    """numba's object for `_shared_out` of a function; for numba's files it has the function's own name and place."""
    code = _shared_out.__code__.replace(co_filename=function.__code__.co_filename, co_name=function.__name__,
                                        co_firstlineno=function.__code__.co_firstlineno)
    named = python_types.FunctionType(code, {"share_out": share_out, "each_thread": inlined(function)}, function.__name__)
    named.__qualname__, named.__module__ = function.__qualname__, function.__module__
    return numba.njit(nogil=True, **options)(named)


def _note(place, error):
    """Warn once that kernels can't be kept."""
    global _noted
    if not _noted:
        _noted = True
        warnings.warn(f"compiled kernels can't be kept in {place} ({error}): each run will compile them (choose another "
                      "folder: NUMBA_CACHE_DIR)", stacklevel=2)


def kernels_for(**signatures):
    """Decorator: a kernel for each dtype of weights → {dtype: kernel}. What depends on types is decided when compiling.

    Each is compiled from a function of its own name, by which numba finds it on disk.
    """
    def declare(function):
        kernels = {}
        for dtype, signature in signatures.items():
            named = python_types.FunctionType(function.__code__, function.__globals__, f"{function.__name__}_{dtype}")
            named.__qualname__ = named.__name__
            kernels[dtype] = kernel(*signature, dtype=dtype)(named)
        return kernels
    return declare


def _needed(dtype):
    """The kernels that a model of some dtype runs; of one of bfloat16 some weights are float32, of one of int8 either."""
    needed = {"float32", dtype} | ({"bfloat16"} if dtype == "int8" else set())
    return [each for each in _kernels if each.dtype is None or each.dtype in needed]


def declared():
    """All kernels that have been imported."""
    return tuple(_kernels)


def warm_up(report=None, dtype="bfloat16", meanwhile=lambda: None):
    """Load or compile every kernel that has been imported and that a model of `dtype` needs, on all cores.

    `report(number, total)` is called before each that has to be compiled, from any thread; number counts from 0.
    `meanwhile()` is called while the other cores already compile: loading a model, say.
    """
    needed = [each for each in _needed(dtype) if each.compiled is None]
    missing = [each for each in needed if not each.is_cached()]
    begun = itertools.count()
    compile_together(missing, lambda: report and report(next(begun), len(missing)), meanwhile)
    for each in needed:
        each.compile()


def is_cached(dtype="bfloat16"):
    """True if the kernels that a model of `dtype` needs are on disk, intact, or compiled, so that no call will compile."""
    return all(each.compiled is not None or each.is_cached() for each in _needed(dtype))
