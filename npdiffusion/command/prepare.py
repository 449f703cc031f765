"""What has to be settled before a model is there: backend, threads, compiled kernels.

NumPy and numba are imported where they are used: how many threads NumPy's BLAS starts has to be settled before.
"""
import contextlib
import gc
import os
import warnings

import npdiffusion
from npdiffusion import kernels
from npdiffusion.command.talk import Progress, say
from npdiffusion.errors import UserError
from npdiffusion.kernels import machine

BLAS_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def set_up(options):
    """Choose backend and threads for this process → (name of the backend, number of threads). Calling it twice is harmless."""
    if options.verbose:
        import logging
        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("npdiffusion").setLevel(logging.INFO)
    if options.backend:
        npdiffusion.use_backend(options.backend)
    try:
        backend = kernels.backend()
    except ValueError as error:
        raise UserError(f"NPDIFFUSION_BACKEND: {error}") from None

    threads = options.threads or machine.physical_cores()
    if threads > machine.logical_cores():
        warnings.warn(f"--threads: {threads} is more than there are cores here, {machine.logical_cores()} will be used",
                      stacklevel=2)
        threads = machine.logical_cores()
    if backend == "numpy":            # its matrix products are BLAS's, which reads these when NumPy is imported
        for name in BLAS_VARIABLES:
            if options.threads or name not in os.environ:
                os.environ[name] = str(threads)
    return backend, threads


@contextlib.contextmanager
def nothing_collected():
    """Within, Python doesn't look for garbage: what is imported and loaded stays, and looking through it takes time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def precision(dtype):
    """A phrase about --dtype: bfloat16 and int8 get a note where the processor can't multiply them."""
    multiplies = {"bfloat16": machine.multiplies_bfloat16, "int8": machine.multiplies_bytes}.get(dtype, lambda: True)
    note = "" if multiplies() else ", widened to float32 for products"
    return f"{dtype} weights{note}"


def compile_kernels(dtype, gradients=False, meanwhile=lambda: None):
    """Compile what isn't on disk from an earlier run, visibly: it takes a while → whether there was anything.

    gradients: also those that a training needs     meanwhile: called in any case, while other cores compile; nothing is
    said before it has ended
    """
    from npdiffusion.kernels import fast
    what = "kernels (first run only)"
    if gradients:
        what = "gradients (first training only)" if fast.is_cached(dtype) else "kernels and gradients (first run only)"
        from npdiffusion.kernels import fast_gradients, fast_steps  # noqa: F401 (from here on they are among those that `fast` knows)
    if fast.is_cached(dtype):
        meanwhile()
        return False
    with contextlib.ExitStack() as shown:
        progress, total = None, 0

        def begin():
            nonlocal progress
            meanwhile()
            say(f"Compiling {what} ...")
            progress = shown.enter_context(Progress("kernel"))

        def report(number, of):
            nonlocal total
            total = of
            if progress:
                progress(number, of)

        fast.warm_up(report, dtype, begin)
        progress(total, total)
    return True
