"""The pictures of a list, made by many processes: those of a Dask cluster (distributed, the extra "cluster").

    driver     has the list and the manifest, and alone writes; one picture at work for each slot of a worker, no more
    worker     has the model; makes one picture at a time, and ends it at its next step when nobody wants it any more, worker.py
    scheduler  Dask's own; it may go and come back: the driver gives it again what was at work

A picture counts when its line is in the manifest and its file in place, as on one machine, so whatever is killed, nothing is
lost and nothing is there twice. At the end, when slots are free, pictures that have been at work for longer than most are begun
once more elsewhere; the first copy counts.
"""
import bisect
import collections
import concurrent.futures
import time

from npdiffusion.errors import UserError
from npdiffusion.jobs.destinations import ending_of
from npdiffusion.jobs.worker import Unasked, Unwanted, difference, introduce, make
from npdiffusion.painting.canvas import open_inputs
from npdiffusion.pictures.images import rgb

MOST_TRIES = 10                       # of a picture at which workers die, and of one that goes wrong
MOST_REFUSALS = 3                     # of a picture that workers say can't be made
MOST_AT_FIRST = 10                    # pictures that are given up before any is made: then it is not the pictures
COPIES = 2                            # of a picture, at the end
LATE = 1.5                            # times the seconds of most pictures, after which one is begun once more
FIRST_PAUSE, LONGEST_PAUSE = 1, 60    # seconds between attempts to reach a scheduler
PAUSE = 0.02                          # seconds between looks at what is done
COUNTED = 1                           # seconds between looks at which workers there are
FETCHED = 10                          # seconds in which what is done comes from its worker, which may stand still since
WRITERS = 8                           # pictures that wait for the disk together


class Driver:
    """Sends pictures to a cluster and saves what comes back.

    connect   gives a distributed.Client for a `with`; OSError where there is no scheduler
    place     a `Manifest` that is open      listener: hears of what is saved, and notes
    model     (identity, {part: place}, names of LoRAs) for worker.introduce, or None for workers that the driver started
    task      {key: value} of `make` that is the same for all pictures
    clock     seconds, and how to wait for some
    """
    def __init__(self, connect, entries, place, listener, model, task, clock=(time.monotonic, time.sleep)):
        self.connect, self.place, self.listener, self.model, self.task = connect, place, listener, model, task
        self.now, self.sleep = clock
        self.todo = collections.deque(entries)
        self.flying = {}              # future → (Entry, when it was begun, workers that may make it or None for all)
        self.tries, self.refusals = collections.Counter(), collections.Counter()
        self.done, self.failed, self.lost, self.known, self.noted = set(), [], 0, {}, set()
        self.seconds = []             # that pictures took, in order
        self.slots, self.fitting, self.here, self.counted, self.reached = 0, None, frozenset(), None, False
        self.asked = {}               # worker → future of its answer to `introduce`

    def run(self):
        """Make them all → [(Entry, why)] of those that could not be made

        UserError if there is no scheduler to begin with, if no worker fits, if nothing can be made, or if the disk is full.
        """
        pause = FIRST_PAUSE
        while self.todo or self.flying:
            try:
                with self.connect() as client:
                    pause, self.reached, self.counted, self.asked = FIRST_PAUSE, True, None, {}
                    self._with(client)
            except UserError:
                raise
            except (OSError, TimeoutError) as error:
                if not self.reached:
                    raise UserError(f"the scheduler can't be reached ({error or type(error).__name__})") from None
                self.todo.extendleft(entry for entry, *_ in self.flying.values() if id(entry) not in self.done)
                self.flying.clear()
                self.listener.note(f"the scheduler can't be reached ({error or type(error).__name__}); trying again in "
                                   f"{pause} s")
                self.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        return self.failed

    def _with(self, client):
        """Work until all is done, or the scheduler is gone (OSError)"""
        with concurrent.futures.ThreadPoolExecutor(WRITERS) as self.writers:
            while self.todo or self.flying:
                if client.status != "running":
                    raise OSError("it is gone")
                self._feed(client)
                self.sleep(PAUSE)
                self._take(client, [future for future in self.flying if future.done()])

    # ---- out

    def _feed(self, client):
        """One picture for each slot of the workers that fit"""
        if self.counted is None or self.now() - self.counted >= COUNTED:
            self.slots, self.counted = self._slots(client), self.now()
            self._strand(client)
        while len(self.flying) < self.slots:
            entry = self.todo.popleft() if self.todo else self._straggler()
            if entry is None:
                return
            self.tries[id(entry)] += 1
            key = f"picture-{id(entry):x}-{self.tries[id(entry)]}-{time.time_ns():x}"
            task = self.task | {"request": request_of(entry).to_json(), "ending": ending_of(self.place.name_of(entry)),
                                "wanted": self.model and self.model[0]}
            future = client.submit(make, task, key=key, pure=False, workers=self.fitting and [*self.fitting],
                                   allow_other_workers=False, retries=0)
            self.flying[future] = entry, self.now(), self.fitting

    def _slots(self, client):
        """Slots of the workers whose model is the right one; UserError if there are workers, but none such"""
        threads, self.fitting = client.nthreads(), None
        if self.model is None:
            return sum(threads.values())
        self._ask(client, threads)
        self.here = fitting = frozenset(worker for worker in threads if self.known.get(worker) == "")
        if threads and not fitting and threads.keys() <= self.known.keys():
            raise UserError(f"none of the {len(threads)} workers fits: {self.known[next(iter(threads))]}")
        if len(fitting) < len(threads):                  # a list of a thousand addresses goes with each picture only then
            self.fitting = fitting
        return sum(threads[worker] for worker in fitting)

    def _ask(self, client, workers):
        """Ask new workers with what they would make pictures, and hear who has answered

        Nobody waits for an answer: a worker that stands still gives none, and must not hold up the others.
        """
        for worker in self.asked.keys() - workers:       # it went while it was asked; one that comes back is asked again
            client.cancel([self.asked.pop(worker)])
        for worker in workers:
            if worker not in self.known and worker not in self.asked:
                self.asked[worker] = client.submit(introduce, *self.model, key=f"introduce-{worker}-{time.time_ns():x}",
                                                   pure=False, workers=[worker], allow_other_workers=False, priority=1)
        for worker in [worker for worker, future in self.asked.items() if future.done()]:
            answer = self._answer(self.asked.pop(worker))
            if answer is None:
                continue
            found, missed = answer
            differs = difference(found, self.model[0])
            if differs:
                looked = f"; its files were not at {' or '.join(missed)} there, nor in the hub's cache" if missed else ""
                self.listener.note(f"the worker {worker} is left out: {differs}{looked}")
            self.known[worker] = differs

    def _answer(self, future):
        """What `introduce` gave; (None, []) of a worker that has no such function, None of one that went or stood still"""
        import distributed
        try:
            return future.result(FETCHED)
        except (distributed.CancelledError, distributed.scheduler.KilledWorker, distributed.TimeoutError, OSError):
            return None
        except Exception:                                # noqa: BLE001, whatever another program raises
            return None, []

    def _strand(self, client):
        """Put back pictures for which no worker is left of those that may make them: Dask would wait for one to come back."""
        lost = [future for future, (_, _, workers) in self.flying.items() if workers and not workers & self.here]
        if lost:
            client.cancel(lost)
        for future in lost:
            entry, *_ = self.flying.pop(future)
            self._again(entry, "the workers that made it went")

    def _straggler(self):
        """The picture that has been at work longest, if that is long and it has no second copy yet, or None"""
        late = self.now() - LATE * self.seconds[len(self.seconds) // 2] if self.seconds else -1
        copies = collections.Counter(id(entry) for entry, *_ in self.flying.values())
        waiting = [(since, number, entry) for number, (entry, since, _) in enumerate(self.flying.values())
                   if since < late and copies[id(entry)] < COPIES]
        return min(waiting)[-1] if waiting else None

    # ---- in

    def _take(self, client, futures):
        """Save the pictures of futures that are done, all at once; put entries back whose picture was not made."""
        ready = {}                    # id of the entry → what is saved; a second copy isn't
        for future in futures:
            entry, since, _ = self.flying.pop(future)
            made = self._made(client, future, entry)
            if made is not None and id(entry) not in self.done:
                ready[id(entry)] = entry, *made
                bisect.insort(self.seconds, self.now() - since)
            future.release()
        self.done |= ready.keys()
        copies = [future for future, (entry, *_) in self.flying.items() if id(entry) in ready]
        if copies:
            client.cancel(copies)
            for future in copies:
                del self.flying[future]
        saving = [self.writers.submit(self.place.save_file, content, ending, entry, record)
                  for entry, content, ending, record, _ in ready.values()]
        for each in saving:
            each.result()             # a UserError that the disk is full ends the run; the same command goes on
        for *_, notes in ready.values():
            for note in notes:
                if note not in self.noted:
                    self.noted.add(note)
                    self.listener.note(note)

    def _made(self, client, future, entry):
        """What a future brings, or None and the entry is put back, or given up"""
        import distributed
        try:
            return future.result(FETCHED)
        except UserError as error:
            self.refusals[id(entry)] += 1
            self._again(entry, str(error), self.refusals[id(entry)] < MOST_REFUSALS)
            if not self.done and len(self.failed) >= MOST_AT_FIRST:
                raise
        except Unasked:
            self.tries[id(entry)] -= 1
            self._again(entry, "")
        except distributed.TimeoutError:
            self._again(entry, "the worker that made it stands still")
        except distributed.scheduler.KilledWorker:
            self.lost += 1
            self._again(entry, "the workers that made it died")
        except (distributed.CancelledError, Unwanted):
            if client.status != "running":
                self.todo.appendleft(entry)
                raise OSError("it is gone") from None
            self._again(entry, "it was cancelled")
        except Exception as error:                       # noqa: BLE001, a mistake, or a machine that is out of order
            self._again(entry, f"{type(error).__name__}: {error}"[:200])
        return None

    def _again(self, entry, why, more=True):
        """Try a picture once more, or give it up."""
        if id(entry) in self.done or any(other is entry for other, *_ in self.flying.values()):
            return                                       # there, or at work elsewhere
        if more and self.tries[id(entry)] < MOST_TRIES:
            self.todo.insert(self.slots, entry)          # soon, but by another worker
        else:
            self.failed.append((entry, why))


def request_of(entry):
    """The request with its pictures inside: files are read here, workers have none"""
    request = entry.request
    found = {name: tuple(rgb(each, name) for each in value) for name in ("control_image", "ip_image")
             if (value := getattr(request, name)) is not None}
    if request.t2i_image is not None:
        found["t2i_image"] = rgb(request.t2i_image, "t2i_image")
    if request.init_image is not None:
        inputs = open_inputs(request)
        found |= {"init_image": inputs.picture, "mask_image": inputs.mask}
    return request.changed(**found) if found else request
