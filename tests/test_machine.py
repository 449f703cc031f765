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


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


@pytest.mark.parametrize(("line", "files", "share"), [
    ("0::/", {"cpu.max": "150000 100000\n"}, 1.5),
    ("0::/", {"cpu.max": "max 100000\n"}, math.inf),
    ("0::/outer/inner", {"outer/cpu.max": "50000 100000\n", "outer/inner/cpu.max": "max 100000\n"}, 0.5),
    ("0::/outer/inner", {"outer/cpu.max": "150000 100000\n", "outer/inner/cpu.max": "25000 100000\n"}, 0.25),
    ("3:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
    ("3:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
    ("3:memory:/", {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
    ("0::/", {}, math.inf),
], ids=["version 2", "version 2 unlimited", "outer group", "inner group", "version 1", "version 1 unlimited",
        "not of that kind", "none"])
def test_the_share_of_a_container(line, files, share, tmp_path):
    write(tmp_path, files | {"own": line + "\n"})
    assert machine._share(tmp_path, tmp_path / "own") == share


@pytest.mark.parametrize("line, files", [
    ("0::/outer/inner", {"outer/inner/memory.max": "1000", "outer/inner/memory.current": "700",
                         "outer/inner/memory.stat": "anon 1\ninactive_file 200\n", "outer/memory.max": "max"}),
    ("4:cpu,memory:/job", {"memory/job/memory.limit_in_bytes": "1000", "memory/job/memory.usage_in_bytes": "700",
                           "memory/job/memory.stat": "inactive_file 9\ntotal_inactive_file 200\n"})])
def test_limits_of_control_groups_count(tmp_path, line, files):
    write(tmp_path, files | {"own": line + "\n"})
    assert list(machine._memory_left(tmp_path, tmp_path / "own")) == [500]


def test_available_memory_is_at_most_what_the_machine_has():
    assert 0 < machine.memory_available() <= machine.memory()


def test_files_about_memory_are_read_once_in_a_tenth_of_a_second(monkeypatch):
    reads, clock, read = [], [1000.0], machine._read
    monkeypatch.setattr(machine, "_read", lambda path: reads.append(path) or read(path))
    monkeypatch.setattr(machine.time, "monotonic", lambda: clock[0])
    machine.memory_available()
    once = len(reads)
    machine.memory_available()
    assert once and len(reads) == once
    clock[0] += 2 * machine.FRESH
    machine.memory_available()
    assert len(reads) == 2 * once


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
