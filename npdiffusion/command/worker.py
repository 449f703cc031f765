"""npdiffusion worker ADDRESS: make pictures for whoever gives a list to the cluster at that address (--cluster)."""
import asyncio
import time

from npdiffusion.command.cluster import CALM, check_installed, keywords
from npdiffusion.command.parser import Parser, reader
from npdiffusion.command.talk import say
from npdiffusion.settings.kinds import Path
from npdiffusion.settings.run import OPTIONS

LOADING = ("model", "unet", "control", "refiner", "model_dir", "tokenizer", "dtype", "lora_dir", "embedding_dir", "vae",
           "threads", "max_memory", "backend")
PAUSE = 5                             # seconds before a scheduler that went is looked for again


def parse(arguments):
    """The checked options; SystemExit with code 2 and a line on stderr if they are wrong."""
    parser = Parser(prog="npdiffusion worker", usage="npdiffusion worker ADDRESS [options]", allow_abbrev=False,
                    description="Load a model and make pictures for a Dask cluster, one at a time, until it is stopped. When "
                                "the scheduler goes, it waits for it to come back. Without -m it takes the model of whoever "
                                "gives the list, if the same files are at the same path here, or in the hub's cache.")
    parser.add_argument("address", metavar="ADDRESS", type=reader(Path()), help="of the scheduler, such as "
                        "tcp://head:8786, or its scheduler file (.json)")
    for name in (*LOADING, "verbose"):
        parser.add(OPTIONS[name])
    parser.set_defaults(ip_adapter=None, ip_encoder=None, t2i_adapter=None)
    return parser.read(arguments, positional="address")


def run(options):
    """Load the model, then work until a signal ends it."""
    check_installed()
    from npdiffusion.command import generate
    from npdiffusion.command.prepare import set_up
    backend, threads = set_up(options)
    from npdiffusion.jobs import worker
    pipeline, _ = generate.load(options, backend, threads, [])
    load = keywords(options, threads)
    worker.own |= {"pipeline": pipeline, "load": load, "identity": worker.identity_of(load),
                   "free": all(getattr(options, name) is None for name in ("model", "unet", "vae", "tokenizer", "refiner",
                                                                       "control"))}
    while True:
        try:
            asyncio.run(work(options.address))
        except (OSError, TimeoutError, asyncio.TimeoutError) as error:
            say(f"{options.address}: no scheduler there ({error or type(error).__name__}); it is tried again every {PAUSE} s")
        time.sleep(PAUSE)


async def work(address):
    """Register at the scheduler and do what it says, until it is gone. One picture at a time; memory is left to us."""
    import dask
    import distributed
    dask.config.set(CALM)
    place = {"scheduler_file": address} if address.endswith(".json") else {"scheduler_ip": address}
    async with distributed.Worker(**place, nthreads=1, memory_limit=0, dashboard=False) as worker:
        say(f"{worker.address} works for {worker.scheduler.address}")
        await worker.finished()
