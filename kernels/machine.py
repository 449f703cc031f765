"""What this process may use: processor, its vector instructions, cores. Needs neither NumPy nor numba.

Linux tells in /proc and /sys, macOS by `sysctl`; where a system doesn't tell, the answer is what Python knows.
"""
import functools
import math
import os
import pathlib
import platform
import subprocess
import sys

FEATURES = {                          # as the system names it → as people do; x86 in /proc/cpuinfo, ARM there, macOS
    "avx2": "AVX2", "fma": "FMA", "avx512f": "AVX-512", "avx512_vnni": "AVX512-VNNI", "avx512_bf16": "AVX512-BF16",
    "amx_bf16": "AMX-BF16",
    "asimd": "NEON", "sve": "SVE", "bf16": "BF16",
    "hw.optional.avx2_0": "AVX2", "hw.optional.avx512f": "AVX-512", "hw.optional.AdvSIMD": "NEON",
    "hw.optional.arm.FEAT_BF16": "BF16",
}


def cpu_name():
    """What the processor calls itself."""
    names = (_facts().get("model name"), _facts().get("machdep.cpu.brand_string"), platform.processor())
    return next(filter(None, names), platform.machine())


def cpu_features():
    """Names of the vector instructions that matter here, such as ["AVX2", "FMA"]; empty if the system doesn't tell."""
    facts = _facts()
    flags = {*facts.get("flags", facts.get("Features", "")).split()}
    flags.update(name for name, value in facts.items() if value == "1")
    return list(dict.fromkeys(name for flag, name in FEATURES.items() if flag in flags))


def multiplies_bfloat16():
    """Whether the processor has products of bfloat16 that the kernels use; others widen it to float32 for products."""
    return "AVX512-BF16" in cpu_features()


def logical_cores():
    """Number of processors that this process may run on, hyper-threads each counted."""
    return len(_allowed())


def physical_cores():
    """Number of cores that this process may keep busy: hyper-threads counted once, a container's share respected."""
    siblings = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    cores = len({_read(siblings.format(cpu)) or str(cpu) for cpu in _allowed()})
    if sys.platform == "darwin":
        cores = min(cores, int(_facts().get("hw.physicalcpu", cores)))
    return max(1, math.ceil(min(cores, _share())))


def memory():
    """Bytes of main memory in this machine; None if the system doesn't tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _allowed():
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def _share(root="/sys/fs/cgroup"):
    """Processors' worth of time that a container's control group (version 2 or 1) allows; infinite if unlimited."""
    quota, period = (_read(f"{root}/cpu.max") or "max 1").split()
    if quota == "max":
        quota, period = _read(f"{root}/cpu/cpu.cfs_quota_us") or "-1", _read(f"{root}/cpu/cpu.cfs_period_us") or "1"
    return int(quota) / int(period) if int(quota) > 0 else math.inf


@functools.cache
def _facts():
    """`name: value` as the system lists them for the first processor."""
    lines = (_read("/proc/cpuinfo") or "").partition("\n\n")[0].splitlines()
    if sys.platform == "darwin":
        answer = subprocess.run(["sysctl", "machdep.cpu", "hw"], capture_output=True, text=True, check=False)
        lines = answer.stdout.splitlines()
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _read(path):
    """Text of a small file of the system, None if it isn't there."""
    try:
        return pathlib.Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
