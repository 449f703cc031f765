"""What this process may use, from the files in which systems tell it."""
import math
import os

import pytest

from npdiffusion.kernels import machine


def test_physical_cores_are_among_the_logical_ones():
    assert 1 <= machine.physical_cores() <= machine.logical_cores() <= os.cpu_count()


def test_hyper_threads_count_once(monkeypatch):
    monkeypatch.setattr(machine, "_allowed", lambda: {0, 1, 2, 3})
    monkeypatch.setattr(machine, "_read", lambda path: "0,2" if "cpu0/" in path or "cpu2/" in path else
                        "1,3" if "/cpu1/" in path or "/cpu3/" in path else None)
    assert machine.physical_cores() == 2


@pytest.mark.parametrize(("files", "share"), [
    ({"cpu.max": "150000 100000\n"}, 1.5),
    ({"cpu.max": "max 100000\n"}, math.inf),
    ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
    ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
    ({}, math.inf),
], ids=["version 2", "version 2 unlimited", "version 1", "version 1 unlimited", "none"])
def test_the_share_of_a_container(files, share, tmp_path):
    (tmp_path / "cpu").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert machine._share(tmp_path) == share


def test_half_a_core_is_one_thread(monkeypatch):
    monkeypatch.setattr(machine, "_share", lambda: 0.5)
    assert machine.physical_cores() == 1


@pytest.mark.parametrize(("facts", "features"), [
    ({"flags": "fpu sse2 fma avx2 avx512f avx512_bf16"}, ["AVX2", "FMA", "AVX-512", "AVX512-BF16"]),
    ({"Features": "fp asimd bf16"}, ["NEON", "BF16"]),
    ({"hw.optional.AdvSIMD": "1", "hw.optional.arm.FEAT_BF16": "0", "hw.ncpu": "8"}, ["NEON"]),
    ({}, []),
], ids=["x86", "ARM", "macOS", "unknown"])
def test_features_by_the_names_that_people_use(facts, features, monkeypatch):
    monkeypatch.setattr(machine, "_facts", lambda: facts)
    assert machine.cpu_features() == features


def test_the_processor_always_has_a_name(monkeypatch):
    monkeypatch.setattr(machine, "_facts", dict)
    assert machine.cpu_name()
