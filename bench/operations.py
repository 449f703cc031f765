"""Where the time of a step or of a decoding goes, by operation; the parts add up to the whole.

Each operation of `npdiffusion.kernels` is timed from call to return. What happens between them is "other": Python,
concatenation of skip connections, sharing of halves.
"""
import contextlib
import inspect
import time
from collections import defaultdict

from bench import network, turns
from bench.peak import Peak
from npdiffusion import kernels
from npdiffusion.models.configs import UNetConfig, VAEConfig


def add_arguments(parser):
    network.add_arguments(parser)
    parser.add_argument("--of", choices=("step", "decode"), default="step", help="what to take apart (default step)")
    parser.add_argument("--shapes", action="store_true", help="a row for each shape, not only for each operation")
    parser.set_defaults(against=[])


def run(arguments, sizes=None):
    """Time by operation of one of our steps, or decodings."""
    sizes = sizes or (UNetConfig() if arguments.of == "step" else VAEConfig())
    threads = turns.set_threads(arguments.threads)
    turns.describe(f"profile of a {arguments.of}", threads, arguments)
    (_, call, _), *_ = network.systems(arguments.of, arguments, sizes, threads)
    call()
    peak = Peak(threads, arguments.dtype)
    best = None
    for _ in range(arguments.repeats):                   # the turn that was disturbed least
        peak()
        entries = []
        with timed(entries, arguments.shapes):
            whole = turns.seconds(call)
        if best is None or whole < best[0]:
            best = whole, entries
    report(arguments, threads, *best, peak.flops)


@contextlib.contextmanager
def timed(entries, shapes=False):
    """Within this context every operation appends (label, seconds, floating-point operations or None) to entries."""
    def wrapped(name, operation):
        signature = inspect.signature(operation)

        def call(*args, **options):
            start = time.perf_counter()
            result = operation(*args, **options)
            elapsed = time.perf_counter() - start
            entries.append((*describe(name, signature.bind(*args, **options).arguments, result, shapes), elapsed))
            return result
        return call

    originals = {name: getattr(kernels, name) for name in kernels.OPERATIONS}
    for name, operation in originals.items():
        setattr(kernels, name, wrapped(name, operation))         # found before the module's __getattr__ is asked
    try:
        yield
    finally:
        for name in originals:
            delattr(kernels, name)


def describe(name, arguments, result, shapes):
    """→ (label, floating-point operations of a direct algorithm, None where they do not count)"""
    flops, detail = None, f"{'×'.join(map(str, result.shape))}"
    weight = arguments.get("weight")
    if name == "attention":
        q, k = arguments["q"], arguments["k"]
        flops = 4 * q.size * k.shape[1]
        detail = f"{q.shape[0]}×{q.shape[1]}×{k.shape[1]} heads {arguments['heads']}×{q.shape[2] // arguments['heads']}"
    elif weight is not None and len(weight.shape) == 4:
        outputs, inputs, height, width = weight.shape
        flops = 2 * result.size * inputs * height * width
        name += f" {height}×{width}" + (" stride 2" if arguments.get("stride", 1) == 2 else "")
        detail += f" ← {inputs}"
    elif weight is not None and len(weight.shape) == 2:
        outputs, inputs = weight.shape
        flops = 2 * arguments["x"].size * outputs
        detail += f" ← {inputs}"
    return f"{name} {detail}" if shapes else name, flops


def report(arguments, threads, whole, entries, peak):
    """The table and the line of JSON."""
    sums = defaultdict(lambda: [0, 0.0, 0])
    for label, flops, elapsed in entries:
        total = sums[label]
        total[0] += 1
        total[1] += elapsed
        total[2] += flops or 0
    found = sorted(((label, *total) for label, total in sums.items()), key=lambda row: -row[2])
    found.append(("other", None, whole - sum(row[2] for row in found), 0))
    found.append(("all", len(entries), whole, sum(row[3] for row in found)))
    rows = [(label, calls, 1e3 * time, time / whole, *((flops / 1e9, flops / time / 1e9, flops / time / peak) if flops
                                                       else (None,) * 3)) for label, calls, time, flops in found]
    turns.table([("calls", "d"), ("ms", ".1f"), ("share", ".1%"), ("GFLOP", ".1f"), ("GFLOP/s", ".0f"),
                 ("of peak", ".2f")], rows)
    turns.last_line(benchmark="profile", of=arguments.of, dtype=arguments.dtype, size=arguments.size, threads=threads,
                    images=arguments.images, peak_gflops=peak / 1e9, seconds=whole,
                    parts={label: {"calls": calls, "seconds": time, "gflop": flops / 1e9}
                           for label, calls, time, flops in found[:-1]})
