"""How much memory is in use while pictures are made."""
import os
import pathlib
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from npdiffusion.memory import estimates, malloc
from npdiffusion.memory.malloc import memory_reused
from tests import references
from tests.processes import output_of

STATUS = pathlib.Path("/proc/self/status")


def test_decoding_takes_no_more_memory_than_is_estimated():
    vae = references.twin(references.torch_vae(**references.TINY_VAE))
    latents = np.random.default_rng(0).standard_normal((1, 48, 48, 4), np.float32)
    vae.decode(latents)                                                        # kernels get their working memory
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    vae.decode(latents)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.7 * estimates.picture(vae.config, 192, 192) < peak - before < estimates.picture(vae.config, 192, 192)


STEPS = """
import npdiffusion
resident = {}

def watch(step, steps, latents):
    with open("/proc/self/status") as status:
        resident[step] = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

npdiffusion.load().generate("a red apple", steps=50, sampler="ddim", seed=0, callback=watch)
print(resident[2], resident[50])
"""


@pytest.mark.skipif(not STATUS.exists(), reason="resident memory is read from /proc")
def test_resident_memory_does_not_grow_from_step_to_step():
    second, last = map(int, output_of(STEPS).split())            # in a process that has made nothing else
    assert abs(last - second) < 5_000                                          # kB


FAULTS = """
import resource
import numpy as np
from npdiffusion.memory.malloc import memory_reused

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.ones(12 << 20, np.float32)                                          # 48 MB, pages of 4 kB or 2 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with memory_reused():
    np.ones(12 << 20, np.float32)
    print(faults())
print(faults())
"""


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", ()), reason="only glibc can be told")
def test_memory_of_arrays_that_are_gone_is_reused():
    """In a process of its own, whose heap has no gaps that would be reused anyway."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True)
    within, afterwards = map(int, done.stdout.split())
    assert within < 100 < afterwards


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(malloc, "_glibc", lambda: None)
    with memory_reused():
        assert np.ones(3).sum() == 3
