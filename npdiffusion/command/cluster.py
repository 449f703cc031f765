"""--cluster ADDRESS: the pictures of --prompts by many processes; see jobs/cluster.py, which prints nothing."""
import contextlib
import functools
import importlib.util
import json
import logging
import re

from npdiffusion.command.talk import Progress, say
from npdiffusion.errors import UserError
from npdiffusion.jobs.listener import Listener
from npdiffusion.kernels import machine

LOCAL = re.compile(r"local:(\d{1,4})")


def make(options, entries, place, reporter):
    """Make the pictures of `entries` → how many could not be made; each of those is said."""
    check_installed()
    from npdiffusion.jobs import cluster
    from npdiffusion.loading import locate_model
    from npdiffusion.pictures.settings_text import model_name
    path, local = locate_model(options.model, options.model_dir), LOCAL.fullmatch(options.cluster)
    count = int(local[1]) if local else 0
    threads = options.threads or max(1, machine.physical_cores() // max(count, 1))
    load = dict(path_or_id=str(path), dtype=options.dtype, threads=threads, tokenizer=options.tokenizer, vae=options.vae,
                lora_dir=options.lora_dir, embedding_dir=options.embedding_dir, max_memory=options.max_memory,
                unet=options.unet, refiner=options.refiner, ip_adapter=options.ip_adapter, image_encoder=options.ip_encoder,
                t2i_adapter=options.t2i_adapter)
    task = {"load": json.dumps(load), "model": model_name(options.model), "metadata": not options.no_metadata,
            "vae": None if options.vae is None else model_name(options.vae)}
    connect = functools.partial(start, count) if local else functools.partial(reach, options.cluster)
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with Progress("picture", len(entries)) as bar:
        driver = cluster.Driver(connect, entries, place, Told(reporter, bar, len(entries)),
                                None if local else cluster.identity_of(path, options.dtype), task)
        place.listener = driver.listener
        failed = driver.run()
    for entry, why in failed:
        say(f"{entry.request.prompt!r:.60}, seed {entry.request.seed}: could not be made ({why})")
    say(f"{len(entries) - len(failed)} of {len(entries)} pictures are made" + (f", {driver.lost} times a worker was lost"
                                                                               if driver.lost else ""))
    return len(failed)


def check_installed():
    """UserError unless Dask is there."""
    if importlib.util.find_spec("distributed") is None:
        raise UserError('a cluster needs distributed: pip install "npdiffusion[cluster]"')


@contextlib.contextmanager
def start(count):
    """A client of so many processes of this machine"""
    import distributed
    if not 1 <= count <= machine.logical_cores():
        raise UserError(f"--cluster: this machine has {machine.logical_cores()} cores, so local:1 to "
                        f"local:{machine.logical_cores()} can be")
    with (distributed.LocalCluster(n_workers=count, threads_per_worker=1, memory_limit=0, dashboard_address=None,
                                   silence_logs=logging.CRITICAL) as processes, distributed.Client(processes) as client):
        yield client


@contextlib.contextmanager
def reach(address):
    """A client of the scheduler at an address"""
    import distributed
    place = {"scheduler_file": address} if address.endswith(".json") else {"address": address}
    try:
        client = distributed.Client(**place, timeout=30)
    except ValueError as error:
        raise UserError(f"--cluster {address}: no address of a scheduler, such as tcp://head:8786, its file, or local:2 "
                        f"({error})") from None
    with client:
        yield client


class Told(Listener):
    """Moves the bar and says what is saved."""
    def __init__(self, reporter, bar, total):
        self.reporter, self.bar, self.total, self.done = reporter, bar, total, 0

    def saved(self, path):
        self.done += 1
        self.bar(self.done, self.total)
        self.reporter.saved(path)

    def note(self, text):
        say(text)
