"""How time grows with what is asked for, and whether it was announced: bench/GROWTH.md and its chart.

    a guided step    of 128² to 1024² pixels, of 1 to 8 pictures at once, on one thread, with AVX2 alone
    a decoding       of 1024² pixels, in one piece and in tiles
    announced        what npdiffusion.memory.seconds finds before a step runs, as --max-memory tells it

The model is Stable Diffusion v1 with random weights. AVX2 needs a process of its own; NUMBA_CPU_NAME without
NUMBA_CPU_FEATURES would leave AVX-512 in use.
"""
import datetime
import functools
import json
import os
import shlex
import subprocess
import sys
from typing import NamedTuple

from bench import folders, models, network, turns
from bench.plot import OURS, THEIRS
from bench.results import PAGE
from npdiffusion.errors import UserError
from npdiffusion.kernels import machine
from npdiffusion.memory import seconds, tiles
from npdiffusion.models.conditioning import Conditioning
from npdiffusion.models.configs import UNetConfig, VAEConfig
from npdiffusion.models.flops import WORDS

SIZES, IMAGES, SMALL, USUAL, LARGE = (128, 256, 512, 1024), (2, 4, 8), 256, 512, 1024
LONG = 10                                                # seconds: what takes longer is run once, the rest twice
AVX2 = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+bmi,+bmi2,+f16c,+popcnt"}
COLUMNS = ("what", "pixels", "pictures", "threads", "announced s", "measured s", "announced ÷ measured", "s a picture")


class Row(NamedTuple):
    """What was timed; seconds are of all pictures together."""
    what: str
    size: int
    images: int
    threads: int
    seconds: float
    announced: float | None = None


def add_arguments(parser):
    parser.add_argument("--dtype", choices=turns.PEERS_DTYPES, default="float32", help="of the weights (default float32)")
    parser.add_argument("--threads", type=int, default=None, help="default: physical cores")
    parser.add_argument("-o", "--output", type=folders.of, default=PAGE.parent, metavar="FOLDER",
                        help="where page and chart are written (default bench/)")


def run(arguments, unet_sizes=UNetConfig(), vae_sizes=VAEConfig()):
    """Time by size, pictures at once, threads, instructions and tiles, beside what was announced; some minutes."""
    try:
        import matplotlib
    except ImportError:
        raise UserError('charts need matplotlib: pip install -e ".[bench]"') from None
    matplotlib.use("Agg")
    threads = turns.set_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)      # minutes are lost if that fails afterwards
    rows = []
    for row in measured(arguments.dtype, threads, unet_sizes, vae_sizes):
        print(f"{row.what}, {row.size}², {row.images}, {row.threads} threads: {row.seconds:.2f} s", flush=True)
        rows.append(row)
    head = f"{machine.cpu_name()} ({', '.join(machine.cpu_features())}), {threads} threads"
    page, chart = arguments.output / "GROWTH.md", arguments.output / "growth.png"
    page.write_text(written(rows, head, arguments.dtype), encoding="utf-8")
    figure = draw(rows, f"{machine.cpu_name()}, {threads} threads, {arguments.dtype}")
    figure.savefig(chart, dpi=100, metadata={"Software": None})
    print(f"wrote {page} and {chart}")
    turns.last_line(benchmark="growth", dtype=arguments.dtype, rows=[row._asdict() for row in rows],
                    versions=turns.versions([]))


def measured(dtype, threads, unet_sizes, vae_sizes):
    """Yield a Row for each thing that is timed."""
    plan = [(size, 1, threads) for size in SIZES] + [(SMALL, images, threads) for images in IMAGES]
    plan += [(USUAL, 1, 1)] if threads > 1 else []
    unet = models.ours(unet_sizes, dtype)
    for size, images, count in plan:
        turns.set_threads(count)
        yield step(unet, size, images, count)
    turns.set_threads(threads)
    del unet
    vae = models.ours(vae_sizes, dtype)
    for name, mode in (("decoding", "off"), ("decoding in tiles", "on")):
        latents = models.normal(1, LARGE // vae_sizes.reduction, LARGE // vae_sizes.reduction, vae_sizes.latent_channels)
        tile = tiles.choose(vae_sizes, LARGE, LARGE, mode)
        yield Row(name, LARGE, 1, threads, timed(functools.partial(vae.decode, latents, tile)))
    del vae
    if "AVX2" in machine.cpu_features():
        yield Row("step, AVX2", SMALL, 1, threads, elsewhere(dtype, threads, AVX2))


def step(unet, size, images, threads):
    """A guided step of some pictures → Row"""
    side = size // network.REDUCTION
    announced = seconds.of_step([unet], side, side, 2 * images)
    latents = models.normal(images, side, side, unet.config.in_channels)
    conditioning = Conditioning(models.normal(2 * images, WORDS, unet.config.cross_attention_dim))
    return Row("step", size, images, threads, timed(lambda: unet(latents, network.TIME, conditioning)), announced)


def timed(call):
    """Seconds of a call, of the second one unless that takes long: then memory that the first one touches matters little"""
    first = turns.seconds(call)
    return first if first > LONG else turns.seconds(call)


def elsewhere(dtype, threads, environment):
    """Seconds of a small step in a process with other variables"""
    command = f"-W ignore -m bench step --size {SMALL} --dtype {dtype} --threads {threads} --repeats 2 --against ''"
    answer = subprocess.run([sys.executable, *shlex.split(command)], env={**os.environ, **environment}, text=True,
                            stdout=subprocess.PIPE, check=False)
    if answer.returncode:
        raise UserError(f"python {command} failed with {environment}")
    return json.loads(answer.stdout.splitlines()[-1])["seconds"][turns.OURS]


def written(rows, head, dtype):
    """The page"""
    lines = [[row.what, f"{row.size}²", str(row.images), str(row.threads),
              *(["", f"{row.seconds:.2f}", ""] if row.announced is None else
                [f"{row.announced:.2f}", f"{row.seconds:.2f}", f"{row.announced / row.seconds:.2f}"]),
              f"{row.seconds / row.images:.2f}"] for row in rows]
    table = "".join(f"| {' | '.join(line)} |\n" for line in [COLUMNS, ["---"] * len(COLUMNS), *lines])
    return (f"# How time grows\n\n{head},\n{dtype}, {datetime.date.today()}. Written by `python -m bench growth`: a guided "
            "step of Stable Diffusion v1 and its decoding, with random\nweights.\n\n"
            f"{table}\n![Seconds by pixels](growth.png)\n")


def draw(rows, head):
    """Steps by pixels with what was announced, and seconds a picture of all else → matplotlib figure"""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    by_size, others = figure.subplots(1, 2, width_ratios=[1.1, 1])
    threads = max(row.threads for row in rows)
    plain = [row for row in rows if row.what == "step" and row.images == 1 and row.threads == threads]
    by_size.loglog([row.size for row in plain], [row.seconds for row in plain], "o-", color=OURS, label="measured")
    by_size.loglog([row.size for row in plain], [row.announced for row in plain], "x", color=THEIRS, label="announced")
    for row in plain:
        by_size.annotate(f"{row.seconds:.2g} s", (row.size, row.seconds), (0, 9), textcoords="offset points", ha="center",
                         fontsize=8)
    by_size.set_xticks([row.size for row in plain], [f"{row.size}²" for row in plain])
    by_size.set_ylim(min(row.seconds for row in plain) / 2, 2.5 * max(row.seconds for row in plain))
    by_size.margins(x=0.1)
    by_size.minorticks_off()
    by_size.legend(frameon=False)
    by_size.set_title("A guided step", fontsize=11, loc="left")
    rest = [row for row in rows if row not in plain or row.size in (SMALL, USUAL)]
    names = [", ".join([f"{row.what} {row.size}²"] + ([f"{row.images} at once"] if row.images > 1 else [])
                       + (["1 thread"] if row.threads < threads else [])) for row in rest]
    others.barh(range(len(rest)), [row.seconds / row.images for row in rest], color=OURS)
    for place, row in enumerate(rest):
        others.text(row.seconds / row.images, place, f" {row.seconds / row.images:.2g}", va="center", fontsize=8)
    others.set_yticks(range(len(rest)), names, fontsize=8)
    others.invert_yaxis()
    others.set_xticks([])
    others.margins(x=0.15)
    others.set_title("Seconds a picture", fontsize=11, loc="left")
    for axes in (by_size, others):
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(f"{head}: bench/GROWTH.md", fontsize=8, color="#475569")
    return figure
