"""The pictures of a list, made by many processes: those of a Dask cluster (distributed, the extra "cluster").

    driver     has the list and the manifest, and alone writes; one picture at work for each slot of a worker, no more
    worker     has the model; makes one picture at a time, and ends it at its next step when nobody wants it any more
    scheduler  Dask's own; it may go and come back: the driver gives it again what was at work

A picture counts when its line is in the manifest and its file in place, as on one machine, so whatever is killed, nothing is
lost and nothing is there twice. At the end, when slots are free, the pictures that have been at work longest are begun once
more elsewhere; the first copy counts.
"""
import collections
import functools
import hashlib
import io
import json
import pathlib
import time
import warnings

from PIL import Image

from npdiffusion.errors import UserError
from npdiffusion.jobs.entries import Entry
from npdiffusion.jobs.listener import Listener
from npdiffusion.jobs.render import render
from npdiffusion.painting.canvas import open_inputs
from npdiffusion.settings import Request
from npdiffusion.version import __version__

MOST_TRIES = 10                       # of a picture at which workers die, and of one that goes wrong
COPIES = 2                            # of a picture, at the end
FIRST_PAUSE, LONGEST_PAUSE = 1, 60    # seconds between attempts to reach a scheduler
PAUSE = 0.02                          # seconds between looks at what is done
ENDS = 1 << 20                        # bytes of either end of a file of weights by which it is known


class Unwanted(Exception):
    """Nobody wants the picture any more: the driver has gone, or another copy was first."""


# ---- on a worker

own = {}                              # "pipeline" and "identity" of a process that `npdiffusion worker` started


@functools.lru_cache(1)
def loaded(options):
    """The pipeline of a process that the driver started, once for all pictures; options: of npdiffusion.load, as JSON"""
    from npdiffusion.loading import load
    return load(**json.loads(options))


def identity():
    """What a worker makes pictures with, or None for one that the driver started"""
    return own.get("identity")


def make(task):
    """A picture → its file (PNG), the text inside or None, the record for the manifest, warnings"""
    import distributed
    worker = distributed.get_worker()
    pipeline = own.get("pipeline") or loaded(task["load"])
    place = Kept()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        render(pipeline, [Entry(Request.from_json(task["request"]))], 1, place, Wanted(worker, worker.get_current_task()),
               task["model"], task["vae"], task["metadata"])
    file = io.BytesIO()
    place.image.save(file, "PNG", compress_level=1)
    notes = [str(each.message) for each in said if issubclass(each.category, UserWarning)]
    return file.getvalue(), place.text, place.record | {"worker": str(worker.name)}, notes


class Kept:
    """A place that keeps one picture."""
    def save(self, image, text, entry, record):
        self.image, self.text, self.record = image, text, record


class Wanted(Listener):
    """Ends a picture that nobody wants; Dask can't end a thread."""
    def __init__(self, worker, key):
        self.worker, self.key = worker, key

    def step(self, done, total, latents):
        task = self.worker.state.tasks.get(self.key)
        if task is None or task.state == "cancelled":
            raise Unwanted


def digest(path):
    """What a model is known by: names, sizes and both ends of its files of weights"""
    path, found = pathlib.Path(path), hashlib.sha256()
    for file in [path] if path.is_file() else sorted(path.rglob("*.safetensors")):
        with file.open("rb") as content:
            size = content.seek(0, 2)
            content.seek(0)
            found.update(f"{file.relative_to(path.parent if path.is_file() else path)} {size} ".encode())
            found.update(content.read(ENDS))
            content.seek(max(0, size - ENDS))
            found.update(content.read())
    return found.hexdigest()[:16]


# ---- the driver

class Driver:
    """Sends pictures to a cluster and saves what comes back.

    connect   gives a distributed.Client for a `with`; OSError where there is no scheduler
    place     a `Manifest` that is open      listener: hears of what is saved, and notes
    model     (version, digest, dtype) that workers must have, or None for those that the driver started
    task      {key: value} of `make` that is the same for all pictures
    """
    def __init__(self, connect, entries, place, listener, model, task):
        self.connect, self.place, self.listener, self.model, self.task = connect, place, listener, model, task
        self.todo = collections.deque(entries)
        self.flying = {}              # future → (Entry, when it was begun)
        self.tries = collections.Counter()
        self.done, self.failed, self.lost, self.known, self.noted = set(), [], 0, {}, set()

    def run(self):
        """Make them all → the entries that could not be made. Raises UserError for what no worker can make."""
        pause = FIRST_PAUSE
        while self.todo or self.flying:
            try:
                with self.connect() as client:
                    pause = FIRST_PAUSE
                    self._with(client)
            except UserError:
                raise
            except (OSError, TimeoutError) as error:
                self.todo.extendleft(entry for entry, _ in self.flying.values() if id(entry) not in self.done)
                self.flying.clear()
                self.listener.note(f"the scheduler can't be reached ({error or type(error).__name__}); trying again in "
                                   f"{pause} s")
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        return self.failed

    def _with(self, client):
        """Work until all is done, or the scheduler is gone (OSError)"""
        while self.todo or self.flying:
            if client.status != "running":
                raise OSError("it is gone")
            self._feed(client)
            time.sleep(PAUSE)
            for future in [future for future in self.flying if future.done()]:
                if future in self.flying:                # a copy of one that has just been saved is not
                    self._take(client, future)

    def _feed(self, client):
        """One picture for each slot of the workers that fit"""
        slots = self._slots(client)
        while len(self.flying) < slots:
            entry = self.todo.popleft() if self.todo else self._straggler()
            if entry is None:
                return
            self.tries[id(entry)] += 1
            key = f"picture-{id(entry):x}-{self.tries[id(entry)]}-{time.time_ns():x}"
            future = client.submit(make, self.task | {"request": request_of(entry).to_json()}, key=key, pure=False,
                                   workers=self.fitting or None, allow_other_workers=False, retries=0)
            self.flying[future] = entry, time.monotonic()

    def _slots(self, client):
        """Slots of the workers whose model is the right one; UserError if there are workers, but none such"""
        threads, self.fitting = client.nthreads(), []
        if self.model is None:
            return sum(threads.values())
        new = [worker for worker in threads if worker not in self.known]
        if new:
            self.known |= client.run(identity, workers=new, on_error="ignore")
        for worker in new:
            if self.known.get(worker) not in (None, self.model):
                self.listener.note(f"the worker {worker} has {describe(self.known[worker])}, but {describe(self.model)} is "
                                   "asked for: it is left out")
        self.fitting = [worker for worker in threads if self.known.get(worker) == self.model]
        if threads and not self.fitting:
            raise UserError(f"none of the {len(threads)} workers has {describe(self.model)}")
        return sum(threads[worker] for worker in self.fitting)

    def _straggler(self):
        """The picture that has been at work longest, if it has no second copy yet, or None"""
        copies = collections.Counter(id(entry) for entry, _ in self.flying.values())
        waiting = [(since, number, entry) for number, (entry, since) in enumerate(self.flying.values())
                   if copies[id(entry)] < COPIES]
        return min(waiting)[-1] if waiting else None

    def _take(self, client, future):
        """Save the picture of a future, or put its entry back."""
        import distributed
        entry, _ = self.flying.pop(future)
        try:
            png, text, record, notes = future.result()
        except UserError:
            raise
        except distributed.scheduler.KilledWorker:
            self.lost += 1
            self._again(entry, "the workers that made it died")
        except (distributed.CancelledError, Unwanted):
            if client.status != "running":
                self.todo.appendleft(entry)
                raise OSError("it is gone") from None
            if id(entry) not in self.done:
                self._again(entry, "it was cancelled")
        except Exception as error:                       # noqa: BLE001, a mistake, or a machine that is out of order
            self._again(entry, f"{type(error).__name__}: {error}"[:200])
        else:
            if id(entry) not in self.done:
                self.done.add(id(entry))
                self.place.save(Image.open(io.BytesIO(png)), text, entry, record)
                copies = [other for other, (same, _) in self.flying.items() if same is entry]
                client.cancel(copies)
                for other in copies:
                    del self.flying[other]
                for note in notes:
                    if note not in self.noted:
                        self.noted.add(note)
                        self.listener.note(note)
        future.release()

    def _again(self, entry, why):
        """Try a picture once more, or give it up."""
        if id(entry) in self.done or any(other is entry for other, _ in self.flying.values()):
            return                                       # there, or at work elsewhere
        if self.tries[id(entry)] < MOST_TRIES:
            self.todo.append(entry)
        else:
            self.failed.append((entry, why))


def request_of(entry):
    """The request with its pictures inside: files are read here, workers have none"""
    request = entry.request
    if request.init_image is None:
        return request
    inputs = open_inputs(request)
    return request.changed(init_image=inputs.picture, mask_image=inputs.mask)


def describe(what):
    """A worker's identity, for people"""
    return "a model of another program" if what is None else f"npdiffusion {what[0]} with the model {what[1]}, {what[2]}"


def identity_of(path, dtype):
    """What workers with that model tell"""
    return (__version__, digest(path), dtype or "float32")
