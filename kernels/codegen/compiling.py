"""Compiling kernels with numba: one signature each, kept on disk, so that only the first run of a machine compiles.

`@kernel(signature)` declares an entry point. It is compiled, or loaded from the cache, when first launched, for that
signature alone: a call with other types is an error instead of a second, silent compilation. Functions that kernels
call are plain `njit`; they become part of the kernel's machine code and need no cache entry of their own.

The cache lies in a folder named after all that machine code depends on. numba itself looks at the file of the compiled
function alone, and would not notice an edit in another one (a tile shape, say): hence the digest of every source here.
The first writable place of these is taken: $NUMBA_CACHE_DIR, `__pycache__` beside this file, the user's cache folder,
and at last a private temporary folder, with a note on stderr.
"""
import functools
import hashlib
import os
import pathlib
import shutil
import sys
import tempfile
import threading
import types as python_types

import numba
from llvmlite import binding as llvm
from numba import types

from ..threads import start_threads

# Fused multiply-add is welcome. Reordering sums is not: compensated sums and the splitting of ln 2 would be lost.
# NaN stays NaN, because a caller wants to find it.
FASTMATH = {"contract", "nsz"}

inlined = functools.partial(numba.njit, fastmath=FASTMATH, error_model="numpy")
reordered = functools.partial(numba.njit, fastmath=FASTMATH | {"reassoc"}, error_model="numpy")       # sums as vectors

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


def target():
    """Name and features of the CPU that numba compiles for: this one, or NUMBA_CPU_NAME and NUMBA_CPU_FEATURES."""
    name, features = numba.config.CPU_NAME, numba.config.CPU_FEATURES
    return (llvm.get_host_cpu_name() if name is None else name,
            llvm.get_host_cpu_features().flatten() if features is None else features)


def _writable(folder):
    """True if `folder` exists or can be made, and takes files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def _private_temporary_folder():
    """A folder that nobody else can write to: a cache is code. Kept between runs if it is ours already."""
    user = os.getuid() if hasattr(os, "getuid") else 0   # on Windows the folder lies in the user's profile anyway
    folder = pathlib.Path(tempfile.gettempdir(), f"npdiffusion-kernels-{user}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if folder.is_symlink() or (hasattr(os, "getuid") and (status.st_uid != user or status.st_mode & 0o077)):
            raise PermissionError
    except OSError:
        folder = pathlib.Path(tempfile.mkdtemp(prefix="npdiffusion-kernels-"))
    print(f"npdiffusion: no cache folder is writable, compiled kernels go to {folder} (choose one: NUMBA_CACHE_DIR)",
          file=sys.stderr)
    return folder


@functools.cache
def cache_folder():
    """The folder that holds compiled kernels of these sources for this CPU."""
    here = pathlib.Path(__file__).resolve().parent.parent
    sources = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(here.rglob("*.py")))).hexdigest()[:12]
    machine = hashlib.sha256(repr((numba.__version__, target())).encode()).hexdigest()[:12]
    user = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "npdiffusion")
    places = [pathlib.Path(numba.config.CACHE_DIR)] if numba.config.CACHE_DIR else [here / "__pycache__", user]
    place = next((p for p in places if _writable(p)), None) or _private_temporary_folder()
    if place == here / "__pycache__":                    # kernels of sources that are gone: nobody else has this folder
        for old in place.glob("kernels-*"):
            if not old.name.startswith(f"kernels-{sources}-"):
                shutil.rmtree(old, ignore_errors=True)
    return place / f"kernels-{sources}-{machine}"


class kernel:
    """Decorator: an entry point that numba compiles for one signature when `compile` is called; it may use `prange`.

    signature: types of the arguments after the first two, which are the same for all: the number of threads, and the
    counter from which they take their jobs, see `threads.launch`     dtype: of the weights, if it serves only one
    """

    def __init__(self, *signature, dtype=None):
        self.signature, self.dtype = types.void(size, integers_out, *signature), dtype

    def __call__(self, function):
        self.name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"
        self.function, self.compiled = function, None
        _kernels.append(self)
        return self

    def compile(self):
        """Load the kernel from the cache, or compile it (a second or so)."""
        with _lock:
            if self.compiled is not None:                # by another Python thread, meanwhile
                return
            start_threads()
            before = numba.config.CACHE_DIR
            try:
                numba.config.CACHE_DIR = str(cache_folder())
                compiled = numba.njit(cache=True, nogil=True, parallel=True, fastmath=FASTMATH,
                                      error_model="numpy")(self.function)
            finally:
                numba.config.CACHE_DIR = before
            compiled.compile(self.signature)
            compiled.disable_compile()
            self.compiled = compiled

    def is_cached(self):
        """True if `compile` will find machine code on disk. Looks at file names alone."""
        python = f"py{sys.version_info[0]}{sys.version_info[1]}"
        return any(cache_folder().glob(f"*/{self.name}-*.{python}*.nbc"))


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
    """The kernels that a model of some dtype runs; one of bfloat16 has some weights in float32 as well."""
    return [each for each in _kernels if each.dtype in (None, "float32", dtype)]


def warm_up(report=None, dtype="bfloat16"):
    """Load or compile every kernel that has been imported and that a model of `dtype` needs.

    `report(name, number, total)` is called before each.
    """
    needed = _needed(dtype)
    for number, each in enumerate(needed):
        if each.compiled is None:
            if report is not None:
                report(each.name, number, len(needed))
            each.compile()


def is_cached(dtype="bfloat16"):
    """True if the kernels that a model of `dtype` needs are on disk (or compiled), so that no call will compile."""
    return all(each.compiled is not None or each.is_cached() for each in _needed(dtype))
