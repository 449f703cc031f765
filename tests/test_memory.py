"""How much memory is in use while pictures are made."""
import pathlib
import tracemalloc

import numpy as np
import pytest

import npdiffusion
from npdiffusion import memory
from tests import references

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
    assert 0.7 * memory.picture(vae.config, 192, 192) < peak - before < memory.picture(vae.config, 192, 192)


@pytest.mark.skipif(not STATUS.exists(), reason="resident memory is read from /proc")
def test_resident_memory_does_not_grow_from_step_to_step():
    resident = {}

    def watch(step, steps, latents):
        resident[step] = next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith("VmRSS"))

    npdiffusion.load().generate("a red apple", steps=50, sampler="ddim", seed=0, callback=watch)
    assert abs(resident[50] - resident[2]) < 5_000                             # kB
