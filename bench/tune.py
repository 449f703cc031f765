"""How large jobs of products should be on this processor: sizes are tried, the best kept in kernels/products/job_sizes.json.

    what is timed    a guided step of Stable Diffusion v1 with random weights and, in float32 and bfloat16, a decoding
    which sizes      those of `job_sizes.JobSizes` that products of the dtype go by, one after the other
    when a change    if the least and the median of its turns are both better by WORTH than those of the size that is there

All candidates for a size take turns. The next size is tried with the best one so far. Results are the same for all of them.
"""
import contextlib
import functools
import json
import statistics

from bench import models, network, turns
from npdiffusion.kernels.products import job_sizes
from npdiffusion.models.conditioning import Conditioning
from npdiffusion.models.configs import UNetConfig, VAEConfig
from npdiffusion.models.flops import WORDS

CANDIDATES = {"tiles": (6, 12, 18, 24), "panels": (10, 20, 30), "winograd_tiles": (5, 8, 12, 16), "pixels": (128, 256, 512),
              "kilowords": (64, 128, 256, 384)}
WORTH = 0.01


def add_arguments(parser):
    turns.add_arguments(parser, dtypes=["int8"])
    parser.add_argument("--write", action="store_true", help="write what is best into the table of this checkout")
    parser.set_defaults(against=[])


def run(arguments, unet_sizes=UNetConfig(), vae_sizes=VAEConfig()):
    """Try how large jobs should be, and write the best sizes into the kernels' table; some minutes."""
    threads = turns.set_threads(arguments.threads)
    turns.describe("sizes of jobs", threads, arguments)
    kind, dtype = job_sizes.kind(arguments.dtype), arguments.dtype
    work = everything(dtype, arguments.size, unet_sizes, vae_sizes)
    work()                                               # compiles
    best, rows = job_sizes.of(dtype), []
    for name in sizes_of(dtype):
        before = getattr(best, name)
        times = turns.take({str(value): under(dtype, best._replace(**{name: value}), work)
                            for value in sorted({before, *CANDIDATES[name]})}, arguments.repeats)
        chosen = choose(times, before)
        for value, found in times.items():
            note = "chosen" if int(value) == chosen else "as it was" if int(value) == before else ""
            rows.append((f"{name} {value} {note}".rstrip(), 1e3 * statistics.median(found), 1e3 * min(found),
                         statistics.median(found) / statistics.median(times[str(before)])))
        best = best._replace(**{name: chosen})
    print(f"{kind}, {turns_of(arguments.repeats)}\n")
    turns.table([("median ms", ".0f"), ("least ms", ".0f"), ("÷ as it was", ".3f")], rows)
    found = {name: getattr(best, name) for name in sizes_of(dtype)}
    if arguments.write:
        write(job_sizes.TABLE, kind, found)
        print(f"wrote {job_sizes.TABLE}")
    turns.last_line(benchmark="tune", dtype=dtype, size=arguments.size, threads=threads, kind=kind, sizes=found,
                    milliseconds={label: median for label, median, *_ in rows}, versions=turns.versions([], dtype))


def turns_of(repeats):
    return f"{repeats} turn{'s' * (repeats > 1)}"


def sizes_of(dtype):
    """Names of the sizes that products of the dtype go by on this processor."""
    if dtype == "int8":
        return ["kilowords"]
    if job_sizes.amx_tile.multiplies(dtype):
        return ["tiles", "panels", "pixels"]
    return ["tiles", "panels", "winograd_tiles"]


def everything(dtype, size, unet_sizes, vae_sizes):
    """→ a call that makes a guided step, and decodes a picture unless that would be without weights of the dtype"""
    side = size // network.REDUCTION
    unet, latents = models.ours(unet_sizes, dtype), models.normal(1, side, side, unet_sizes.in_channels)
    conditioning = Conditioning(models.normal(2, WORDS, unet_sizes.cross_attention_dim))
    decode = functools.partial(models.ours(vae_sizes, dtype).decode, latents) if dtype != "int8" else lambda: None

    def work():
        unet(latents, network.TIME, conditioning)
        decode()
    return work


def under(dtype, sizes, work):
    """→ `work`, done with these JobSizes for weights of the dtype"""
    def call():
        with trying(dtype, sizes):
            work()
    return call


@contextlib.contextmanager
def trying(dtype, sizes):
    """Within this context jobs of products with weights of the dtype are of these sizes."""
    measured = job_sizes.of
    job_sizes.of = lambda other: sizes if other == dtype else measured(other)
    try:
        yield
    finally:
        job_sizes.of = measured


def choose(times, before):
    """The fastest value, or `before` if none is better by WORTH in the least and in the median      times: {"value": [s]}"""
    least, middle = min(times[str(before)]), statistics.median(times[str(before)])
    better = [(statistics.median(found), int(value)) for value, found in times.items()
              if min(found) < (1 - WORTH) * least and statistics.median(found) < (1 - WORTH) * middle]
    return min(better)[1] if better else before


def write(table, kind, sizes):
    """Set the row of a kind in the file of the table, a line for each"""
    rows = json.loads(table.read_text(encoding="utf-8")) | {kind: sizes}
    lines = (f" {json.dumps(name, ensure_ascii=False)}: {json.dumps(found)}" for name, found in rows.items())
    table.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
