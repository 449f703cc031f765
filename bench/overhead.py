"""What a picture costs more on a cluster: the same pictures by the command alone and by one worker of this machine, in turns.

    python -m bench overhead                     pictures of about 5 seconds, four turns of each: three minutes and a half

Both have the same threads. Counted is the time from one picture's file to the next one's, so loading is not in it, and of these
times the median. Pictures are the embedded model's, with as many steps as take so long.
"""
import itertools
import pathlib
import socket
import statistics
import subprocess
import tempfile
import time

from bench import turns
from bench.kills import answers, scheduler_at, start, words
from npdiffusion.errors import UserError
from npdiffusion.kernels import machine

FIRST = 100                           # steps of the picture by which the number of steps is chosen


def add_arguments(parser):
    parser.add_argument("--pictures", type=int, default=4, help="of a turn (default 4)")
    parser.add_argument("--turns", type=int, default=4, help="of each (default 4)")
    parser.add_argument("--seconds", type=float, default=5, help="of a picture (default 5)")
    parser.add_argument("--threads", type=int, default=machine.physical_cores(), help="default: physical cores")


def run(arguments):
    """Pictures alone and on one local worker, in turns."""
    if arguments.pictures < 2:
        raise UserError("--pictures: two at least, since what is counted lies between them")
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as free:
        folder, port = pathlib.Path(folder), free.getsockname()[1]
        free.close()
        processes = [start(scheduler_at(port))]
        try:
            while not answers(port):
                time.sleep(0.1)
            address = f"tcp://127.0.0.1:{port}"
            processes.append(start(words("worker", address, "--threads", arguments.threads)))
            make(folder, "warm", 2, 2, arguments, "--cluster", address)          # the worker has loaded then
            steps = round(FIRST * arguments.seconds / make(folder, "first", 2, FIRST, arguments)[0])
            found = {"alone": [], "cluster": []}         # seconds of each picture, turn by turn
            for turn in range(2 * arguments.turns):      # alone, cluster, cluster, alone, …: a drifting clock is fair to both
                who = ("alone", "cluster", "cluster", "alone")[turn % 4]
                where = ("--cluster", address) if who == "cluster" else ()
                found[who].append(make(folder, f"turn{turn}", arguments.pictures, steps, arguments, *where))
        finally:
            for process in reversed(processes):
                process.kill()
                process.wait()
    pictures = {who: sorted(itertools.chain(*taken)) for who, taken in found.items()}
    turns.table([("s a picture", ".3f"), ("least", ".3f"), ("most", ".3f")],
                [(who, statistics.median(each), each[0], each[-1]) for who, each in pictures.items()])
    alone, cluster = (statistics.median(pictures[who]) for who in ("alone", "cluster"))
    print(f"{steps} steps a picture, {arguments.threads} threads: the cluster takes {100 * (cluster / alone - 1):+.1f} %")
    turns.last_line(benchmark="overhead", steps=steps, pictures=arguments.pictures, threads=arguments.threads, **found)


def make(folder, name, count, steps, arguments, *where):
    """Seconds from each picture's file to the next one's"""
    (folder / f"{name}.csv").write_text("prompt,seed\n" + "".join(f"a cat,{seed}\n" for seed in range(count)))
    threads = () if where else ("--threads", arguments.threads)
    command = words("--prompts", folder / f"{name}.csv", "--steps", steps, "-o", f"{folder}/{name}/", *threads, *where)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"the list ended with {done.returncode}: {done.stderr[-500:]}")
    times = sorted(path.stat().st_mtime for path in (folder / name).glob("*.png"))
    return [later - before for before, later in itertools.pairwise(times)]
