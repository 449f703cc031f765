"""Compiling several kernels at once: numba compiles one after the other in a process, so further processes help.

    this process    does something else meanwhile, if there is anything, then takes kernels from a list, the one that was
                    declared last first, since the large ones were
    each helper     is given the next one whenever it is done, by a thread that waits for it

A helper leaves machine code on disk, where this process finds it; one that fails costs time, never a picture, because
a kernel that isn't on disk is compiled when it is launched.
"""
import contextlib
import os
import pathlib
import subprocess
import sys
import threading

from .. import machine
from . import cache


def compile_together(kernels, begun, meanwhile=lambda: None):
    """Compile kernels that aren't on disk, on all cores; `begun()` is called when one is begun, from any thread.

    `meanwhile()` is called once other processes have begun, before this one takes part.
    """
    left, lock = list(kernels), threading.Lock()

    def following():
        with lock:
            if not left:
                return None
            begun()
            return left.pop()

    with contextlib.ExitStack() as helpers:
        for _ in range(min(machine.physical_cores(), len(left)) - 1):
            helpers.enter_context(helper(following))
        meanwhile()
        while (each := following()) is not None:
            each.compile()


@contextlib.contextmanager
def helper(following):
    """Within, a process compiles what `following` gives it; at the end it has done so, or is stopped after an exception."""
    if not pathlib.Path(sys.executable or "").name.lower().startswith(("python", "pypy")):
        yield                                            # Python is part of another program, which is not started again
        return
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "NUMBA_CACHE_DIR": str(cache.folder().parent)}
    try:
        started = subprocess.Popen([sys.executable, "-m", f"{__package__}.helper"], env=environment, text=True,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:                                      # no more processes are allowed, perhaps
        yield
        return
    with started as process:
        thread = threading.Thread(target=feed, args=(process, following))
        thread.start()
        try:
            yield
        except BaseException:
            process.kill()
            raise
        finally:
            thread.join()


def feed(process, following):
    """Name one kernel after the other to a helper; ends when there are no more, or it doesn't answer."""
    with contextlib.suppress(OSError, ValueError):
        while process.stdout.readline() and (each := following()) is not None:
            process.stdin.write(f"{each.function.__module__} {each.name}\n")
            process.stdin.flush()
        process.stdin.close()
