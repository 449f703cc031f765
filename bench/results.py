"""All that RESULTS.md shows, measured on this machine: every command in a process of its own, its table as printed.

    step and decode, float32 and bfloat16, beside both peers       what takes the time of a step
    time against picture size, threads and images at once          loading; a whole picture and its memory
"""
import argparse
import datetime
import json
import pathlib
import shlex
import subprocess
import sys

from bench import turns
from npdiffusion.kernels import machine

PAGE = pathlib.Path(__file__).with_name("RESULTS.md")
LEGEND = """
Every system takes turns with the others in one process (A B C A B C …) on the same random full-size weights; medians
are quoted beside the least. A turn of a step or decoding is two calls, of which the second counts. *Step*: the UNet for
one guided picture, that is for a batch of 2. *Decode*: latents to picture. GFLOP/s count what a direct algorithm would
do, so that Winograd's convolution may exceed the peak, which is the rate of our register tile in the nearest cache, on
all threads, in the same run. "GB" is what the process grew by for that system; "difference" is to our result, over its
largest value.
"""


def add_arguments(parser):
    def numbers(text):
        return [int(word) for word in text.split(",")]
    parser.add_argument("--size", type=int, default=512, help="pixels, where size is not what varies (default 512)")
    parser.add_argument("--sizes", type=numbers, default=[256, 384, 512, 768, 1024], help="where size varies")
    parser.add_argument("--images", type=numbers, default=[1, 2, 4], help="at once (default 1,2,4)")
    parser.add_argument("--steps", type=int, default=50, help="of the whole picture (default 50)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each system (default 5)")
    parser.add_argument("--model", default=None, help="folder to load (default: random weights of full size)")
    parser.add_argument("--page", type=pathlib.Path, default=PAGE, help=argparse.SUPPRESS)


def run(arguments):
    """Everything, written into bench/RESULTS.md; takes most of an hour on two cores."""
    size, repeats = f"--size {arguments.size}", f"--repeats {arguments.repeats}"
    model = f" --model {shlex.quote(arguments.model)}" if arguments.model else ""
    models = [(what, dtype) for what in ("step", "decode") for dtype in turns.PEERS_DTYPES]
    parts = [section("One step, one decoding", [f"{what} {size} {repeats} --dtype {dtype}" for what, dtype in models]),
             section("Where the time goes", [f"profile --of {what} {size} {repeats} --dtype {dtype}"
                                             for what, dtype in models])]
    for dtype in turns.PEERS_DTYPES:
        common = f"--dtype {dtype} {repeats} --against ''"
        parts.append(varying(f"Step against picture size, {dtype}", "size",
                            [f"step --size {pixels} {common}" for pixels in arguments.sizes]))
        parts.append(varying(f"Step against threads, {dtype}", "threads",
                            [f"step {size} --threads {count} {common}" for count in (1, 2)]))
        parts.append(varying(f"Step against images at once, {dtype}", "images",
                            [f"step {size} --images {count} {common}" for count in arguments.images]))
        parts.append(section(f"Loading and a whole picture, {dtype}", [
            f"load {repeats} --dtype {dtype}{model}",
            f"image {size} --steps {arguments.steps} --repeats 1 --dtype {dtype}{model} --against ''"]))
    features, memory = ", ".join(machine.cpu_features()), (machine.memory() or 0) / 1e9
    head = (f"# Benchmarks\n\n{machine.cpu_name()} ({features}), {machine.physical_cores()} cores, {memory:.0f} GB, "
            f"{datetime.date.today()}.\nWritten by `python -m bench results`.\n{LEGEND}")
    page = "\n".join([head, *parts])
    arguments.page.write_text(page.replace(model, " --model FOLDER") if model else page, encoding="utf-8")
    print(f"wrote {arguments.page}")


def measured(command):
    """(printed table, facts of the last line) of `python -m bench command`"""
    print(f"bench {command}", flush=True)
    answer = subprocess.run([sys.executable, "-W", "ignore", "-m", "bench", *shlex.split(command)],
                            stdout=subprocess.PIPE, text=True, check=False)
    if answer.returncode:
        raise SystemExit(f"bench {command} failed")
    *lines, last = answer.stdout.splitlines()
    return "\n".join(lines), json.loads(last)


def section(title, commands):
    """Each command and what it printed."""
    shown = (f"    python -m bench {command}\n\n```\n{measured(command)[0]}\n```\n" for command in commands)
    return f"## {title}\n\n" + "\n".join(shown)


def varying(title, varied, commands):
    """One row for each command: our seconds, and how they relate to those of the first row."""
    found = [measured(command)[1] for command in commands]
    names = list(found[0]["seconds"])
    rows = [[varied, *(f"{name} s" for name in names), "ours ÷ first row", "GFLOP/s, ours", "of peak"],
            ["---"] * (len(names) + 4)]
    for facts in found:
        times, first = facts["seconds"], found[0]["seconds"]
        rate = facts["gflop"] / times[names[0]]
        rows.append([str(facts[varied]), *(f"{times[name]:.2f}" for name in names),
                     f"{times[names[0]] / first[names[0]]:.2f}", f"{rate:.0f}", f"{rate / facts['peak_gflops']:.2f}"])
    shown = "".join(f"    python -m bench {command}\n" for command in commands)
    return f"## {title}\n\n{shown}\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)
