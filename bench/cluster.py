"""A list of pictures on a thousand workers, simulated: the driver of jobs/cluster.py as it is, a cluster that is played.

    python -m bench cluster             the table, and bench/cluster.png

Time passes only where something is waited for. A worker takes its own time for each picture; the driver and the scheduler take
the seconds below for each, one picture after the other, as they were measured with real ones (SCHEDULER, DRIVER, SAVE: a
picture of 0.5 MB; docs/cluster.md says how). Speeds, starts and losses come from a generator with a seed: the same table each
time. The ideal is all workers at work from their start to the end, with nothing in between.

Not in it: a network that is too slow for the pictures (0.5 MB × 20 a second are 80 Mbit/s), and machines that differ more.
"""
import heapq
import itertools
import pathlib

import numpy as np

from bench import folders
from npdiffusion.errors import UserError
from npdiffusion.jobs.cluster import Driver
from npdiffusion.jobs.entries import Entry
from npdiffusion.jobs.listener import Listener
from npdiffusion.settings import Request

SCHEDULER, DRIVER, SAVE = 0.0028, 0.0014, 0.008     # seconds for a picture, one after the other
WRITERS = 8                           # pictures that wait for the disk together
LOADING, STARTS = 30, 60              # seconds in which a model is loaded, and over which workers start
FOUND, BACK = 30, 180                 # seconds until a worker that went is missed, and until it is back
GOALS = {"1,000 workers": 0.85, "one in twenty ten times slower": 0.80}
CASES = {                             # workers, pictures, seconds of one on the slowest machine, keywords of `Cluster`
    "10 workers": (10, 200, 60, {}),
    "100 workers": (100, 2_000, 60, {}),
    "300 workers": (300, 6_000, 60, {}),
    "1,000 workers": (1000, 20_000, 60, {}),
    "one in twenty ten times slower": (1000, 20_000, 60, {"slow": 0.05}),
    "each lost once an hour": (1000, 20_000, 60, {"losses": 1}),
    "pictures of 8 s": (1000, 20_000, 8, {}),
}


def add_arguments(parser):
    parser.add_argument("--seed", type=int, default=0, help="of speeds, starts and losses (default 0)")
    parser.add_argument("-o", "--output", type=folders.of, default=pathlib.Path(__file__).parent, metavar="FOLDER",
                        help="where the chart is written (default bench/)")


class Future:
    """A picture at work: done at a moment, unless its worker goes before."""
    def __init__(self, cluster, end):
        self.cluster, self.end = cluster, end

    def done(self):
        return self.cluster.time >= self.end

    def result(self, timeout):
        return b"", ".png", {}, []

    def release(self):
        pass


class Cluster:
    """A `distributed.Client` for the driver, and its clock.

    speeds   of machines, 1 to 3 times the slowest one      slow: share of those that are ten times slower still
    losses   of a worker in an hour: its picture begins anew elsewhere when that is found
    """
    status = "running"

    def __init__(self, workers, seconds, seed, slow=0.0, losses=0.0):
        rng = np.random.default_rng(seed)
        self.time, self.rng, self.losses = 0.0, rng, losses / 3600
        self.seconds = seconds / rng.uniform(1, 3, workers)
        self.seconds[rng.random(workers) < slow] *= 10
        self.starts = LOADING + rng.uniform(0, STARTS, workers)
        self.free = [(start, worker) for worker, start in enumerate(self.starts)]       # heap: from when on, which
        heapq.heapify(self.free)
        self.server = 0.0             # when the scheduler has time again
        self.begun = 0                # pictures, copies among them

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def now(self):
        return self.time

    def wait(self, seconds):
        self.time += seconds

    def nthreads(self):
        return dict.fromkeys(range(int(np.searchsorted(np.sort(self.starts), self.time, "right"))), 1)

    def submit(self, function, task, **options):
        self.time += DRIVER
        self.server = max(self.server, self.time) + SCHEDULER
        self.begun += 1
        start, worker = heapq.heappop(self.free)
        start = max(start, self.server)
        end = start + self.seconds[worker]
        lost = start + self.rng.exponential(1 / self.losses) if self.losses else np.inf
        future = Future(self, end)
        future.worker = worker, end
        if lost < end:                # found FOUND seconds later; then it is another worker's, this one is back later still
            heapq.heappush(self.free, (lost + BACK, worker))
            other, second = heapq.heappop(self.free)
            future.end = max(lost + FOUND, other) + self.seconds[second]
            worker, end = second, future.end
        heapq.heappush(self.free, (future.end, worker))
        future.worker = worker, future.end
        return future

    def cancel(self, futures):
        """Workers of copies are free at their next step: at once, in these terms."""
        gone = {future.worker for future in futures}
        self.free = [(self.time, worker) if (worker, end) in gone else (end, worker) for end, worker in self.free]
        heapq.heapify(self.free)


class Place:
    """A manifest that takes its time."""
    def __init__(self, cluster):
        self.cluster, self.saved = cluster, []

    def name_of(self, entry):
        return "a.png"

    def save_file(self, content, ending, entry, record):
        self.cluster.time += SAVE / WRITERS
        self.saved.append(self.cluster.time)


def simulate(workers, pictures, seconds, seed=0, **options):
    """A list on a played cluster → {"ideal", "took": seconds, "efficiency": share, "begun": pictures with copies, "saved":
    moments}"""
    cluster = Cluster(workers, seconds, seed, **options)
    place, request = Place(cluster), Request("x", seed=0)
    failed = Driver(lambda: cluster, [Entry(request) for _ in range(pictures)], place, Listener(), None, {},
                    (cluster.now, cluster.wait)).run()
    if failed or len(place.saved) != pictures:
        raise UserError(f"{len(place.saved)} of {pictures} pictures came back")
    took, ideal = place.saved[-1], ideal_of(cluster.starts, cluster.seconds, pictures)
    return {"ideal": ideal, "took": took, "efficiency": ideal / took, "begun": cluster.begun, "saved": place.saved}


def ideal_of(starts, seconds, pictures):
    """When workers that never wait have made so many pictures, the last ones in parts: Σ (T − start) / seconds = pictures"""
    low, high = 0.0, float(starts.max() + seconds.max() * pictures)
    for _ in range(60):
        middle = (low + high) / 2
        made = (np.maximum(middle - starts, 0) / seconds).sum()
        low, high = (low, middle) if made >= pictures else (middle, high)
    return high


def run(arguments):
    """A list of pictures on up to 1,000 workers, simulated with the driver itself."""
    found = {name: simulate(*case[:3], seed=arguments.seed, **case[3]) for name, case in CASES.items()}
    print("| case | workers | pictures | seconds of one | ideal s | took s | of the ideal | goal | begun twice |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, result in found.items():
        workers, pictures, seconds, _ = CASES[name]
        goal = f"{GOALS[name]:.0%}" if name in GOALS else ""
        print(f"| {name} | {workers:,} | {pictures:,} | {seconds} | {result['ideal']:.0f} | {result['took']:.0f} | "
              f"{result['efficiency']:.0%} | {goal} | {result['begun'] - pictures:,} |")
    path = arguments.output / "cluster.png"
    draw(found).savefig(path, dpi=100, metadata={"Software": None})
    print(f"wrote {path}")


def draw(found):
    """Pictures that are done against time, for the cases of 1,000 workers → matplotlib figure"""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError('charts need matplotlib: pip install -e ".[bench]"') from None
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    axes = figure.subplots()
    colours = itertools.cycle(("#c2410c", "#64748b", "#0f766e", "#7c3aed"))
    for name, result in found.items():
        if CASES[name][0] == 1000:
            colour = next(colours)
            saved = np.array(result["saved"])
            places = np.r_[0:len(saved):50, len(saved) - 1]
            axes.plot(saved[places], (places + 1) / 1000, color=colour,
                      label=f"{name}: {result['efficiency']:.0%} of the ideal")
            axes.axvline(result["ideal"], color=colour, linewidth=0.8, linestyle=":")
    axes.set_xlabel("seconds; dotted: the ideal")
    axes.set_ylabel("thousand pictures")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    axes.set_title("20,000 pictures on 1,000 workers, simulated with the driver itself", fontsize=11, loc="left")
    return figure
