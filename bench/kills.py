"""A list of pictures on real workers of this machine, of which one is killed every few seconds, and the scheduler once; and the
same list on one machine: each picture has to be there once, bit for bit the same.

    python -m bench kills --pictures 200 --workers 3 --every 4
    python -m bench kills --every 0                            nothing is killed: what a picture costs beside one machine
    python -m bench kills --slow --failing --full              with a slow worker, a picture that no worker can make, and a disk
                                                               that is full half-way (which takes root)

A worker that was started again is killed once more every third time, before it has loaded its model.
Pictures are the embedded model's, of so many steps. All processes run on 127.0.0.1 and end with this one. Processor time is
that of all of them, since other programs may use the machine: what loading takes is in it, and is told apart.
"""
import contextlib
import itertools
import os
import pathlib
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

from bench import turns
from npdiffusion.errors import UserError

FAILING = "a dog"                     # the prompt of the picture that no worker can make


def add_arguments(parser):
    parser.add_argument("--pictures", type=int, default=200, help="how many (default 200)")
    parser.add_argument("--workers", type=int, default=3, help="how many (default 3)")
    parser.add_argument("--steps", type=int, default=4, help="of each picture (default 4)")
    parser.add_argument("--every", type=float, default=4, help="seconds between kills; 0: none (default 4)")
    parser.add_argument("--slow", action="store_true", help="stop one worker for half of each second")
    parser.add_argument("--failing", action="store_true", help="add a picture that no worker can make")
    parser.add_argument("--full", action="store_true", help="a disk that is full half-way; then it grows, and the same command "
                        "goes on")
    parser.add_argument("--seed", type=int, default=0, help="of who is killed (default 0)")


def run(arguments):
    """Real workers that are killed, and the pictures of one machine."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "prompts.csv").write_text("prompt,seed\n" + "".join(f"a cat,{seed}\n" for seed in range(arguments.pictures)))
        command = ["--prompts", folder / "prompts.csv", "--steps", arguments.steps]
        alone = timed(lambda: subprocess.run(words(*command, "-o", f"{folder}/alone/"), check=True, capture_output=True))
        expected = files(folder / "alone")
        if arguments.failing:
            rows = "".join(f"a cat,{seed},\n" for seed in range(arguments.pictures))
            (folder / "prompts.csv").write_text(f"prompt,seed,clip_skip\n{rows}{FAILING},0,50\n")
        (folder / "many").mkdir()
        half = sum(map(len, expected.values())) // 2
        with small_disk(folder / "many", half) if arguments.full else contextlib.nullcontext() as grow:
            many, kills, said = on_workers(folder, command, arguments, grow)
            found = files(folder / "many")
            lines = (folder / "many" / "manifest.jsonl").read_text().count("\n")
    if found != expected or lines != arguments.pictures:
        raise UserError(f"{lines} lines and {len(found)} files of {arguments.pictures}, "
                        f"{sum(found.get(name) == content for name, content in expected.items())} of them equal")
    print("\n".join(said.splitlines()[-3:]))
    print(f"{arguments.pictures} pictures, each once and bit for bit those of one machine; killed: {kills}")
    rows = [(name, wall, cpu, 1000 * cpu / arguments.pictures) for name, (wall, cpu) in (("alone", alone), ("cluster", many))]
    turns.table([("s", ".1f"), ("processor s", ".1f"), ("processor ms a picture", ".0f")], rows)
    turns.last_line(benchmark="kills", pictures=arguments.pictures, workers=arguments.workers, kills=kills,
                    seconds={"alone": alone[0], "cluster": many[0]}, processor={"alone": alone[1], "cluster": many[1]})


@contextlib.contextmanager
def small_disk(folder, size):
    """Within, a folder is a file system of so many bytes; gives what makes it large"""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "small", folder], check=True)
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=1g", folder], check=True)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def on_workers(folder, command, arguments, grow=None):
    """The list on workers that are killed → (seconds, processor seconds), {who: kills}, what the driver said"""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address, over = f"tcp://127.0.0.1:{port}", threading.Event()
    kills, scheduler = {"workers": 0, "while they load": 0, "scheduler": 0}, scheduler_at(port)
    processes = {"scheduler": start(scheduler)}
    while processes["scheduler"].poll() is None and not answers(port):
        time.sleep(0.2)
    processes |= {f"worker {number}": start(words("worker", address, "--threads", 1)) for number in range(arguments.workers)}

    def kill():
        rng = random.Random(arguments.seed)
        for number in itertools.count(1):
            if over.wait(arguments.every):
                return
            name = "scheduler" if number == 5 else f"worker {rng.randrange(arguments.workers)}"
            processes[name].kill()
            processes[name].wait()
            kills[name.partition(" ")[0].replace("worker", "workers")] += 1
            again = scheduler if name == "scheduler" else words("worker", address, "--threads", 1)
            processes[name] = start(again)
            if name != "scheduler" and number % 3 == 0 and not over.wait(random.Random(number).uniform(0.1, 1)):
                processes[name].kill()
                processes[name].wait()
                kills["while they load"] += 1
                processes[name] = start(again)

    def slow():
        while not over.wait(0.5):
            for what in signal.SIGSTOP, signal.SIGCONT:
                processes["worker 0"].send_signal(what)
                over.wait(0.5)
    threads = [threading.Thread(target=each, daemon=True)
               for each, wanted in ((kill, arguments.every), (slow, arguments.slow)) if wanted]
    done = []
    try:
        def made():
            for thread in threads:
                thread.start()
            asked = words(*command, "-o", f"{folder}/many/", "--cluster", address)
            done.append(subprocess.run(asked, check=False, capture_output=True, text=True))
            if grow and "No space left" in done[0].stderr:
                grow()
                done[0] = subprocess.run(asked, check=False, capture_output=True, text=True)
            over.set()
            for thread in threads:
                thread.join()
            for process in processes.values():
                process.send_signal(signal.SIGCONT)
                process.terminate()
                process.wait(30)
        taken = timed(made)
    finally:
        over.set()
        for process in processes.values():
            process.kill()
    if done[0].returncode != arguments.failing or arguments.failing != (f"'{FAILING}', seed 0: could not" in done[0].stderr):
        raise UserError(f"the list ended with {done[0].returncode}: {done[0].stderr[-1000:]}")
    return taken, kills, done[0].stderr


def scheduler_at(port):
    """The words that start Dask's scheduler"""
    return [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port),
            "--no-dashboard", "--no-show"]


def answers(port):
    """Whether something listens at a port of this machine"""
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def timed(act):
    """(seconds, processor seconds of all processes that were waited for within)"""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    act()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.monotonic() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def words(*arguments):
    return [sys.executable, "-m", "npdiffusion", *map(str, arguments)]


def start(command):
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))})


def files(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}
