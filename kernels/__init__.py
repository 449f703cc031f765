"""The operations that Stable Diffusion is made of, each twice.

    reference.py   their definitions in plain NumPy                      fast.py            the compiled twins, gathered
    gradients.py   the gradient of each, in plain NumPy                  fast_gradients.py  the compiled twins of these
    steps.py       steps of optimisers, in plain NumPy                   fast_steps.py      the compiled twins of these
    products/      linear layers, convolution, attention                 backward/          kernels of gradients
    normalization.py   group and layer norm, of which the vectors:   deviations.py   sums     scaling.py   what comes of them
    activations.py SiLU, GELU, ReLU, element by element                  arrays.py          what the twins accept
    int8.py        numbers of 8 bits and their scales
    codegen/       how kernels are written, compiled and cached          threads.py         how they are launched
    machine.py     the processor and its cores                           environment.py     numba's own variables
    errors.py      what users are told when kernels can't be compiled or kept

`kernels.linear`, `kernels.conv2d`, ... are the twins of the backend that was chosen, so models call operations by name and
do not know which one runs. Look an operation up when it is called (`kernels.linear(...)`), not at import.

Weights are brought once into the layout that a backend wants (`pack_linear`, `pack_conv2d`); both backends take weights
in either form, so that changing the backend later costs speed, never correctness. A weight that is not in memory has a
method `read`, which returns it when an operation needs it.
"""
import contextlib
import functools
import importlib
import inspect
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

from .errors import BackendError  # noqa: F401 (for those who catch it)

OPERATIONS = ("pack_linear", "pack_conv2d", "linear", "conv2d", "linear_geglu", "group_norm", "group_norm_silu", "layer_norm",
              "silu", "gelu", "quick_gelu", "relu", "softmax", "attention", "upsample_nearest", "upsample_conv2d", "embedding",
              "timestep_embedding")
BACKENDS = {"numpy": "reference", "numba": "fast"}
GRADIENTS = {"numpy": "gradients", "numba": "fast_gradients"}
STEPS = {"numpy": "steps", "numba": "fast_steps"}
DTYPES = ("float32", "bfloat16", "int8")                 # that weights can be kept in

Watch = Callable[[str, dict[str, Any], Any], Any]        # (operation, its arguments, its result)
Record = Callable[[str, Callable], Callable]             # (operation's name, operation) → what takes its place

_chosen: str | None = None
_watchers: tuple = ()                                    # (thread, watch) of all threads, the outermost first
_recorders: dict[int, Record] = {}                       # {thread: what `recorded` was given}, of threads that record
_changing = threading.Lock()
_reporting = threading.local()


def use_backend(name: str) -> None:
    """Let operations run on "numpy" (the readable definitions) or "numba" (the fast twins); ValueError for another name.

    Without a call the environment variable NPDIFFUSION_BACKEND decides, and without that it is "numba".
    """
    global _chosen
    if name not in BACKENDS:
        raise ValueError(f"backend {name!r} is unknown: choose one of {', '.join(BACKENDS)}")
    _chosen = name


def backend() -> str:
    """Name of the backend in use: "numpy" or "numba"; ValueError if NPDIFFUSION_BACKEND names another."""
    if _chosen is None:
        use_backend(os.environ.get("NPDIFFUSION_BACKEND") or "numba")
    return _chosen


@contextlib.contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Within this context, call watch(name, arguments, result) after every operation that this thread launches.

    name: one of OPERATIONS     arguments: {parameter: value}, positional or not, with defaults; not to be modified
    Contexts may be nested and may end in any order: every watch sees what happens within its own context, the outermost
    first. An operation that raises is not reported, and neither are those that a watch launches itself; what a watch
    raises reaches the caller of the operation. While nobody watches, operations are called directly.
    """
    global _watchers
    entry = (threading.get_ident(), watch)
    with _changing:
        _watchers = (*_watchers, entry)
    try:
        yield
    finally:
        with _changing:
            _watchers = tuple(each for each in _watchers if each is not entry)


@contextlib.contextmanager
def recorded(record: Record) -> Iterator[None]:
    """Within this context, this thread finds record(name, operation) under the name of each operation.

    record: gives a function that takes the operation's arguments in its place, or None to find operations as they are
    An inner context takes the place of the outer one until it ends. Watches see what the operation itself is given.
    """
    thread = threading.get_ident()
    before = _recorders.get(thread)
    _recorders[thread] = record
    try:
        yield
    finally:
        if before is None:
            _recorders.pop(thread, None)
        else:
            _recorders[thread] = before


def recorder() -> Record | None:
    """What `recorded` was given by this thread, None if it is in no such context."""
    return _recorders.get(threading.get_ident())


def gradient(name: str) -> Any:
    """The rules by which gradients of an operation are computed on the backend in use, see gradients.py."""
    return getattr(_module(GRADIENTS[backend()]), name)


def step(name: str) -> Any:
    """An optimiser's step on the backend in use, see steps.py."""
    return getattr(_module(STEPS[backend()]), name)


def __getattr__(name):
    if name not in OPERATIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    operation = getattr(_module(BACKENDS[backend()]), name)
    if _watchers:
        operation = _reported(name, operation)
    record = recorder() if _recorders else None
    return operation if record is None else record(name, operation)


@functools.cache                           # an operation is looked up thousands of times for a picture
def _module(name):
    return importlib.import_module(f"{__name__}.{name}")


def _reported(name, operation):
    """The same operation, which is reported to those who watch this thread."""
    @functools.wraps(operation)
    def call(*args, **options):
        result = operation(*args, **options)
        watches = [watch for thread, watch in _watchers if thread == threading.get_ident()]
        if watches and not getattr(_reporting, "now", False):
            bound = inspect.signature(operation).bind(*args, **options)
            bound.apply_defaults()
            _reporting.now = True
            try:
                for watch in watches:
                    watch(name, bound.arguments, result)
            finally:
                _reporting.now = False
        return result
    return call


def __dir__():
    return sorted([*globals(), *OPERATIONS])
