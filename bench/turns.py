"""Measuring systems in turn, A B C A B C ..., so that a machine whose speed drifts is fair to each; and what they need.

Medians are quoted, and ratios are of medians from the same run. A machine that other programs use as well makes some
turns slow, and none fast: hence the least time beside the median.
"""
import functools
import gc
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import resource
import statistics
import sys
import time

from npdiffusion.memory.malloc import memory_reused

OURS = "npdiffusion"
PEERS_DTYPES = ("float32", "bfloat16")
PEERS = {"torch": ("torch", "diffusers"), "openvino": ("openvino", "torch", "diffusers"),       # and what they need
         "torch.compile": ("torch", "diffusers"), "onnxruntime": ("onnxruntime", "onnx", "torch", "diffusers")}
USUAL = ("torch", "openvino")                            # the others are asked for by name: they take minutes to make
FLOAT32_ONLY = ("onnxruntime",)                          # on processors of x86
INT8 = {"openvino": "nncf"}                              # peers that have it, and what they need for it
REST = 0.2          # seconds between turns: thread pools spin for a moment more, on cores that the next one needs


def add_arguments(parser, size=512, repeats=3, steps=None, dtypes=(), known=USUAL):
    """The options that benchmarks of models have in common; dtypes: that peers don't have; known: peers that may be named"""
    parser.add_argument("--size", type=int, default=size, help=f"pixels, of a square picture (default {size})")
    parser.add_argument("--threads", type=int, default=None, help="default: physical cores")
    parser.add_argument("--dtype", choices=(*PEERS_DTYPES, *dtypes), default="float32",
                        help="of our weights, and of peers' weights and results (default float32)")
    parser.add_argument("--repeats", type=int, default=repeats, help=f"turns of each system (default {repeats})")
    parser.add_argument("--against", type=functools.partial(names, known=known), default=[*USUAL],
                        help=f"of {', '.join(known)} (default: {' and '.join(USUAL)}, if installed; '' is none)")
    if steps:
        parser.add_argument("--steps", type=int, default=steps, help=f"steps of the sampler (default {steps})")


def names(text, known=PEERS):
    """"torch,openvino" → ["torch", "openvino"]; ValueError for a name that is not known"""
    found = [name for name in text.split(",") if name]
    if not {*found} <= {*known}:
        raise ValueError(text)
    return found


def leave_out_missing(arguments):
    """Take those systems out of `--against` that are not installed, and say how to get them; or that lack the dtype."""
    if getattr(arguments, "dtype", "float32") != "float32":
        for name in {*arguments.against} & {*FLOAT32_ONLY}:
            print(f"without {name}, which has float32 alone here\n", file=sys.stderr, flush=True)
        arguments.against = [name for name in arguments.against if name not in FLOAT32_ONLY]
    wanted = [*arguments.against]
    arguments.against = [name for name in wanted if all(map(importlib.util.find_spec, PEERS.get(name, ())))]
    missing = [name for name in wanted if name not in arguments.against]
    if missing:
        print(f"without {' and '.join(missing)}, which {'are' if len(missing) > 1 else 'is'} not installed here: "
              'pip install -e ".[bench]"\n', file=sys.stderr, flush=True)


def leave_out_without_int8(arguments):
    """Take those systems out of `--against` that have no int8 here, and say why."""
    for name in {*arguments.against} - {*INT8}:
        print(f"without {name}, which has no int8 here\n", file=sys.stderr, flush=True)
    arguments.against = [name for name in arguments.against if name in INT8]
    for name in [name for name in arguments.against if not importlib.util.find_spec(INT8[name])]:
        print(f'without {name}, whose int8 needs {INT8[name]}: pip install -e ".[bench]"\n', file=sys.stderr, flush=True)
        arguments.against.remove(name)


def set_threads(count=None):
    """Let our kernels use that many threads (default: physical cores) and return the number."""
    from npdiffusion.kernels import machine, threads
    count = count or machine.physical_cores()
    threads.set_threads(count)
    return count


def seconds(call):
    """Time of one call"""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def take(calls, repeats, twice=()):
    """{name: callable} → {name: seconds of each turn}; all have been called before, so that nothing has to warm up.

    Memory that is freed stays with the process, as it does while a picture is made or a model is trained.
    twice: names of those that are called twice in a turn, the second time for the clock. A sampler's steps follow each
    other; but while others have their turns, caches forget what it needs.
    """
    times = {name: [] for name in calls}
    with memory_reused():
        for _ in range(repeats):
            for name, call in calls.items():
                time.sleep(REST)
                if name in twice:
                    call()
                times[name].append(seconds(call))
    return times


def medians(times):
    """{name: list} → {name: median}"""
    return {name: statistics.median(values) for name, values in times.items()}


def resident():
    """Bytes of main memory that this process has now; where the system doesn't tell, the most it ever had."""
    try:
        return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Growth:
    """with Growth() as growth: ...      growth.bytes is what this process grew by"""
    def __enter__(self):
        gc.collect()
        self.before = resident()
        return self

    def __exit__(self, *_):
        gc.collect()
        self.bytes = resident() - self.before


def describe(what, threads, arguments):
    """The line above a table: machine, load, versions."""
    from npdiffusion.kernels import machine
    load = f", load {os.getloadavg()[0]:.1f} before" if hasattr(os, "getloadavg") else ""
    print(f"{what}, {arguments.dtype}, {arguments.size}×{arguments.size}, {arguments.repeats} turns\n"
          f"{machine.cpu_name()} ({', '.join(machine.cpu_features())}), {threads} threads{load}\n"
          f"{', '.join(map(' '.join, versions(arguments.against, arguments.dtype).items()))}\n", flush=True)


def versions(peers, dtype="float32"):
    """{name: version} of what takes part"""
    distributions = ["numpy", "numba", *dict.fromkeys(sum((PEERS.get(name, ()) for name in peers), ()))]
    if dtype == "int8":
        distributions += [INT8[name] for name in peers if name in INT8]
    return {"Python": platform.python_version()} | {name: importlib.metadata.version(name) for name in distributions}


def table(columns, rows):
    """Print rows, (name, *values), below columns, (heading, format of a value); a value that is None is left out."""
    first = max(16, *(len(row[0]) + 2 for row in rows))
    width = max(10, *(len(heading) + 2 for heading, _ in columns))
    print(" " * first + "".join(f"{heading:>{width}}" for heading, _ in columns))
    for name, *values in rows:
        print(f"{name:<{first}}" + "".join(f"{'' if value is None else format(value, style):>{width}}"
                                            for (_, style), value in zip(columns, values)))


def last_line(**facts):
    """The result as one line of JSON; numbers are rounded to what is measurable."""
    def rounded(value):
        if isinstance(value, float):
            return float(f"{value:.5g}")
        if isinstance(value, dict):
            return {key: rounded(entry) for key, entry in value.items()}
        return [rounded(entry) for entry in value] if isinstance(value, (list, tuple)) else value
    print(json.dumps(rounded(facts)), flush=True)
