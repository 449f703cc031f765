"""The operations that Stable Diffusion is made of, each twice.

`reference.py` defines them in plain NumPy; the other files are their fast twins, compiled by numba and gathered in
`fast.py`. `kernels.linear`, `kernels.conv2d`, ... are the twin of the backend in force, so models call operations by
name and do not know which one runs. Look an operation up when it is called (`kernels.linear(...)`), not at import.

Weights are brought once into the layout that a backend wants (`pack_linear`, `pack_conv2d`); both backends take weights
in either form, so that changing the backend later costs speed, never correctness. A weight that is not in memory has a
method `read`, which gives it when an operation needs it.
"""
import contextlib
import functools
import importlib
import os

OPERATIONS = ("pack_linear", "pack_conv2d", "linear", "conv2d", "linear_geglu", "group_norm", "group_norm_silu", "layer_norm",
              "silu", "gelu", "quick_gelu", "relu", "softmax", "attention", "upsample_nearest", "upsample_conv2d", "embedding",
              "timestep_embedding")
BACKENDS = {"numpy": "reference", "numba": "fast"}
DTYPES = ("float32", "bfloat16")                         # that weights can be kept in

_chosen = None
_watcher = None


def use_backend(name):
    """Let operations run on "numpy" (the readable definitions) or "numba" (the fast twins); ValueError for another name.

    Without a call the environment variable NPDIFFUSION_BACKEND decides, and without that it is "numba".
    """
    global _chosen
    if name not in BACKENDS:
        raise ValueError(f"backend {name!r} is unknown: choose one of {', '.join(BACKENDS)}")
    _chosen = name


def backend():
    """Name of the backend in force: "numpy" or "numba"; ValueError if NPDIFFUSION_BACKEND names another."""
    if _chosen is None:
        use_backend(os.environ.get("NPDIFFUSION_BACKEND") or "numba")
    return _chosen


@contextlib.contextmanager
def watched(watch):
    """Within this context, call watch(operation's name, its positional arguments, its result) after every operation."""
    global _watcher
    _watcher = watch
    try:
        yield
    finally:
        _watcher = None


def __getattr__(name):
    if name not in OPERATIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    operation = getattr(_module(backend()), name)
    if _watcher is None:
        return operation
    return _observed(name, operation, _watcher)


@functools.cache                           # an operation is looked up thousands of times for a picture
def _module(backend):
    return importlib.import_module(f"{__name__}.{BACKENDS[backend]}")


def _observed(name, operation, watch):
    def call(*args, **options):
        result = operation(*args, **options)
        watch(name, args, result)
        return result
    return call


def __dir__():
    return sorted([*globals(), *OPERATIONS])
