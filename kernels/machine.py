"""What this process may use: processor, its vector instructions, cores, memory. Needs neither NumPy nor numba.

Linux says in /proc and /sys, macOS by `sysctl`; where a system doesn't say, the answer is what Python knows.
"""
import functools
import math
import os
import pathlib
import sys
import time

FRESH = 0.1                           # seconds for which it is taken as known how much memory is free
FEATURES = {                          # as the system names it → as people do; x86 in /proc/cpuinfo, ARM there, macOS
    "avx2": "AVX2", "fma": "FMA", "avx512f": "AVX-512", "avx512_vnni": "AVX512-VNNI", "avx512_bf16": "AVX512-BF16",
    "amx_bf16": "AMX-BF16",
    "asimd": "NEON", "sve": "SVE", "bf16": "BF16",
    "hw.optional.avx2_0": "AVX2", "hw.optional.avx512f": "AVX-512", "hw.optional.AdvSIMD": "NEON",
    "hw.optional.arm.FEAT_BF16": "BF16",
}

_ARCH_PRCTL, _REQUEST, _TILE_DATA = 158, 0x1023, 18      # asm/prctl.h: ARCH_REQ_XCOMP_PERM, and the state it is asked for


def cpu_name():
    """What the processor calls itself."""
    import platform
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


def multiplies_bytes():
    """Whether the processor has products of bytes that the kernels use; others widen them to float32 for products."""
    return "AVX512-VNNI" in cpu_features()


@functools.cache
def may_use_tiles():
    """Whether the system lets this process use AMX's tile registers: Linux wants to be asked, once for all threads.

    It refuses if it is older than 5.16, or if some thread has a stack for signals that would be too small.
    """
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return False
    import ctypes
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST, _TILE_DATA) == 0


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


def memory_available():
    """Bytes that this process can still take without swapping; None if the system doesn't say. Asked anew every FRESH seconds:
    it is spread over a dozen files, and a server wants to know for each request."""
    return _memory_available(time.monotonic() // FRESH)


@functools.lru_cache(1)
def _memory_available(moment):
    amounts = [int(line.split()[1]) * 1024 for line in (_read("/proc/meminfo") or "").splitlines()
               if line.startswith("MemAvailable:")] + list(_memory_left())
    if not amounts and "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", ()):
        amounts = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    return min(amounts, default=None)


def _allowed():
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def _share(root="/sys/fs/cgroup", own="/proc/self/cgroup"):
    """Processors' worth of time that control groups allow this process; infinite if unlimited."""
    shares = [math.inf]
    for group, version in _control_groups("cpu", root, own):
        quota, period = (_read(group / "cpu.max") or "max 1").split() if version == 2 else \
            (_read(group / "cpu.cfs_quota_us") or "-1", _read(group / "cpu.cfs_period_us") or "1")
        if quota.isdigit():
            shares.append(int(quota) / int(period))
    return min(shares)


def _memory_left(root="/sys/fs/cgroup", own="/proc/self/cgroup"):
    """Bytes below the limit of each control group that has one.

    Pages of files count as used there, but the kernel reclaims those that were not used lately when memory is short.
    """
    for group, version in _control_groups("memory", root, own):
        names = ("memory.max", "memory.current", "inactive_file") if version == 2 else \
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        limit, used = (_read(group / name) or "" for name in names[:2])
        if limit.isdigit() and used.isdigit():
            statistics = dict(line.split() for line in (_read(group / "memory.stat") or "").splitlines())
            yield max(0, int(limit) - int(used) + int(statistics.get(names[2], 0)))


def _control_groups(controller, root, own):
    """(folder, version 1 or 2) of each control group that may limit this process, the outermost first.

    Containers and batch systems set such limits; those of an outer group hold inside it, too.
    """
    for line in (_read(own) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":                                        # version 2: one tree for all controllers
            top, version = pathlib.Path(root), 2
        elif controller in controllers.split(","):
            top, version = pathlib.Path(root, controller), 1
        else:
            continue
        parts = pathlib.PurePosixPath(path).parts[1:]
        yield from ((top.joinpath(*parts[:depth]), version) for depth in range(len(parts) + 1))


@functools.cache
def _facts():
    """`name: value` as the system lists them for the first processor."""
    lines = (_read("/proc/cpuinfo") or "").partition("\n\n")[0].splitlines()
    if sys.platform == "darwin":
        import subprocess
        answer = subprocess.run(["sysctl", "machdep.cpu", "hw"], capture_output=True, text=True, check=False)
        lines = answer.stdout.splitlines()
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _read(path):
    """Text of a small file of the system, None if it isn't there."""
    try:
        return pathlib.Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
