"""Seconds from the call of `load` to a model that is ready to sample: weights packed, kernels loaded.

Every turn is a fresh process; imports are counted apart. Files are in the page cache, and kernels on disk, since a turn
that does not count has come first. torch stands for diffusers' StableDiffusionPipeline.from_pretrained.

A virtual machine may give free memory back to its host within seconds, and get it again a page at a time, at a second
for a gigabyte or two. So that programs are measured and not the host, memory is taken and freed just before each turn;
with --untouched it is not.
"""
import json
import subprocess
import sys

import numpy as np

from bench import folders, turns

OURS = """
import npdiffusion.loading, npdiffusion.kernels.fast
loading = time.perf_counter()
pipeline = npdiffusion.load(path, dtype=dtype, threads=threads)
npdiffusion.kernels.fast.warm_up(dtype=dtype)
"""
TORCH = """
import torch, diffusers, transformers
from diffusers import StableDiffusionPipeline
diffusers.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()
loading = time.perf_counter()
torch.set_num_threads(threads)
pipeline = StableDiffusionPipeline.from_pretrained(path, torch_dtype=getattr(torch, dtype), safety_checker=None)
"""
FRAME = """
import json, sys, time
path, dtype, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
start = time.perf_counter()
{}
end = time.perf_counter()
from bench.turns import resident
print(json.dumps([loading - start, end - loading, resident()]))
"""


def add_arguments(parser):
    turns.add_arguments(parser, repeats=3)
    folders.add_argument(parser)
    parser.add_argument("--untouched", action="store_true", help="leave free memory as the system has it")
    parser.set_defaults(against=["torch"])


def run(arguments):
    """Loading a model folder, until it is ready to sample."""
    threads = turns.set_threads(arguments.threads)
    turns.describe("load", threads, arguments)
    programs = {turns.OURS: OURS} | ({"torch": TORCH} if "torch" in arguments.against else {})
    with folders.folder(arguments.model) as path:
        found = {name: [once(program, path, arguments.dtype, threads)] for name, program in programs.items()}
        for _ in range(arguments.repeats):
            for name, program in programs.items():
                if not arguments.untouched:
                    np.ones(found[name][0][2] * 5 // 4, np.uint8)
                found[name].append(once(program, path, arguments.dtype, threads))
    found = {name: results[1:] for name, results in found.items()}                   # the first turn compiles
    imports, loading, memory = ({name: [result[i] for result in results] for name, results in found.items()}
                                for i in range(3))
    median = turns.medians(loading)
    turns.table([("import s", ".2f"), ("load s", ".2f"), ("least s", ".2f"), ("ours ÷ it", ".2f"), ("GB", ".2f")],
                [(name, turns.medians(imports)[name], t, min(loading[name]), median[turns.OURS] / t,
                  turns.medians(memory)[name] / 1e9) for name, t in median.items()])
    turns.last_line(benchmark="load", dtype=arguments.dtype, threads=threads, imports=turns.medians(imports),
                    seconds=median, least={name: min(times) for name, times in loading.items()},
                    memory=turns.medians(memory), versions=turns.versions(programs))


def once(program, path, dtype, threads):
    """[seconds to import, seconds to load, resident bytes] of a fresh process"""
    command = [sys.executable, "-W", "ignore", "-c", FRAME.format(program), str(path), dtype, str(threads)]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if answer.returncode:
        raise SystemExit(f"bench: loading {path} failed")
    return json.loads(answer.stdout.splitlines()[-1])
