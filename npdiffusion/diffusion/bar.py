"""A bar that moves with the steps of a picture, for those who call from Python."""
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm

from npdiffusion import kernels


@contextlib.contextmanager
def steps_shown(steps: int, callback: Callable[..., Any], progress: bool) -> Iterator[Callable[..., Any]]:
    """A callback for `make` that also moves a bar on stderr, where that is a terminal."""
    if not progress:
        yield callback
        return
    if kernels.backend() == "numba":
        from npdiffusion.kernels import fast
        if not fast.is_cached("float32"):
            tqdm.write("npdiffusion: compiling kernels, which takes some ten seconds and is done once", file=sys.stderr)
            fast.warm_up(dtype="float32")
    with tqdm(total=steps, unit="step", disable=None) as bar:        # None: only on a terminal
        def step(done, total, latents):
            bar.update(done - bar.n)
            callback(done, total, latents)
        yield step
