"""Processes of a cluster under test, the list that they are given, and what has to be there at the end."""
import json
import os
import pathlib
import subprocess
import sys

COUNT = 10


def start(*arguments, module="npdiffusion"):
    """A process of its own"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-m", module, *map(str, arguments)], env=environment, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


def table(folder, count=COUNT):
    (folder / "prompts.csv").write_text("prompt,seed\n" + "".join(f"a cat,{seed}\n" for seed in range(count)))
    return folder / "prompts.csv"


def pictures(folder):
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).glob("*.png")}


def check(folder, alone):
    """Each picture once, and the single machine's bit for bit"""
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert sorted(line["seed"] for line in lines) == list(range(len(alone)))
    assert pictures(folder) == alone


def scheduler(port):
    """Dask's own, in a process"""
    return start("--host", "127.0.0.1", "--port", port, "--no-dashboard", "--no-show", module="distributed.cli.dask_scheduler")


def end(processes):
    """Kill processes, stopped ones too."""
    for process in processes:
        process.kill()
        process.communicate()
