"""--cluster ADDRESS: the pictures of --prompts by many processes; see jobs/cluster.py, which prints nothing."""
import contextlib
import functools
import importlib.util
import json
import logging
import os
import re
import threading
import time

from npdiffusion.command.talk import Progress, say
from npdiffusion.errors import UserError
from npdiffusion.jobs.listener import Listener
from npdiffusion.kernels import machine

LOCAL = re.compile(r"local:(\d{1,4})")
PATIENCE = 30                         # seconds for which a scheduler is called
CALM = {                              # of Dask's settings: it looks around a hundred times a second, on cores that compute
    "distributed.worker.profile.enabled": False, "distributed.admin.tick.interval": "500ms"}


def make(options, entries, place, reporter):
    """Make the pictures of `entries` → how many could not be made; each of those is said."""
    check_installed()
    from npdiffusion.adapters import tags
    from npdiffusion.jobs import cluster, worker
    from npdiffusion.pictures.settings_text import model_name
    local = LOCAL.fullmatch(options.cluster)
    count = int(local[1]) if local else 0
    load = keywords(options, options.threads or max(1, machine.physical_cores() // max(count, 1)))
    loras = sorted({name for entry in entries for name, _ in tags.take_tags(entry.request.prompt)[1]})
    task = {"load": json.dumps(load), "model": model_name(options.model), "metadata": not options.no_metadata,
            "vae": None if options.vae is None else model_name(options.vae)}
    connect = functools.partial(start, count) if local else functools.partial(reach, options.cluster)
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with Many(len(entries)) as bar:
        driver = cluster.Driver(connect, entries, place, Told(reporter, bar), None if local else (
            worker.identity_of(load, loras), worker.places_of(load), loras), task)
        bar.driver, place.listener = driver, driver.listener
        failed = driver.run()
    for entry, why in failed:
        say(f"{entry.request.prompt!r:.60}, seed {entry.request.seed}: could not be made ({why})")
    say(f"{len(entries) - len(failed)} of {len(entries)} pictures are made" + (f", {driver.lost} times a worker was lost"
                                                                               if driver.lost else ""))
    return len(failed)


def keywords(options, threads):
    """What npdiffusion.load is called with in each process, the model's path as it is here"""
    from npdiffusion.loading import locate_model
    path = os.path.abspath(locate_model(options.model, options.model_dir))
    return dict(path_or_id=path, dtype=options.dtype, threads=threads, tokenizer=options.tokenizer, vae=options.vae,
                lora_dir=options.lora_dir, embedding_dir=options.embedding_dir, max_memory=options.max_memory,
                unet=options.unet, refiner=options.refiner, control=options.control, ip_adapter=options.ip_adapter,
                image_encoder=options.ip_encoder, t2i_adapter=options.t2i_adapter)


def check_installed():
    """UserError unless Dask is there."""
    if importlib.util.find_spec("distributed") is None:
        raise UserError('a cluster needs distributed: pip install "npdiffusion[cluster]"')


@contextlib.contextmanager
def start(count):
    """A client of so many processes of this machine"""
    import dask
    import distributed
    dask.config.set(CALM)
    if not 1 <= count <= machine.logical_cores():
        raise UserError(f"--cluster: this machine has {machine.logical_cores()} cores, so local:1 to "
                        f"local:{machine.logical_cores()} can be")
    with (distributed.LocalCluster(n_workers=count, threads_per_worker=1, memory_limit=0, dashboard_address=None,
                                   silence_logs=logging.CRITICAL) as processes, distributed.Client(processes) as client):
        yield client


@contextlib.contextmanager
def reach(address):
    """A client of the scheduler at an address. OSError if there is none, UserError if it is of another kind."""
    import distributed
    place = {"scheduler_file": address} if address.endswith(".json") else {"address": address}
    try:
        client = distributed.Client(**place, timeout=PATIENCE)
    except ValueError as error:
        raise UserError(f"--cluster {address}: no address of a scheduler, such as tcp://head:8786, its file, or local:2 "
                        f"({error})") from None
    with client:
        # get_versions asks the workers as well, and waits for one that stands still
        check_version(address, client.sync(client.scheduler.versions, packages=[])["packages"])
        yield client


def check_version(address, packages):
    """UserError unless a scheduler has the version of distributed that is here: their messages differ."""
    import distributed
    if packages["distributed"] != distributed.__version__:
        raise UserError(f"--cluster {address}: its scheduler is distributed {packages['distributed']}, here is "
                        f"{distributed.__version__}: install the same on both")


class Many(Progress):
    """The bar over all pictures, with pictures a minute, slots of workers, and what went wrong so far."""
    layout = "{percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
    driver = None

    def __init__(self, total):
        super().__init__("picture", total)
        self.begun = time.monotonic()

    def __call__(self, done, total=None, latents=None):
        minutes = (time.monotonic() - self.begun) / 60
        found = [f"{done / minutes:.1f}/min", f"{self.driver.slots} slots"]
        counts = {"failed": len(self.driver.failed), "lost": self.driver.lost}
        found += [f"{count} {what}" for what, count in counts.items() if count]
        self.bar.set_postfix_str(", ".join(found), refresh=False)
        super().__call__(done, self.total)


class Told(Listener):
    """Moves the bar and says what is saved; several threads save."""
    def __init__(self, reporter, bar):
        self.reporter, self.bar, self.done, self.lock = reporter, bar, 0, threading.Lock()

    def saved(self, path):
        with self.lock:
            self.done += 1
            self.bar(self.done)
            self.reporter.saved(path)

    def note(self, text):
        say(text)
