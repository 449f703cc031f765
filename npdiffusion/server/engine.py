"""The one who makes the pictures: a thread that takes them one at a time, in a fair order, from the jobs that wait.

    submit → Turns → render → gallery, or the answer that waits

A picture ends at its next step, or while it is decoded at the next operation, when nobody wants it any more. Whatever goes
wrong with one ends that job alone.
"""
import functools
import logging
import threading
import time

from npdiffusion.errors import UserError
from npdiffusion.jobs.entries import one_by_one
from npdiffusion.jobs.listener import Listener
from npdiffusion.jobs.render import ended_by, render
from npdiffusion.painting.refining import states
from npdiffusion.pictures.images import to_images
from npdiffusion.pictures.preview import Linear
from npdiffusion.request import resolve
from npdiffusion.server import leading, limits, looking
from npdiffusion.server.catalogue import folders
from npdiffusion.server.gallery import Results
from npdiffusion.server.job import CANCELLED, DONE, FAILED, QUEUED, RUNNING, Job
from npdiffusion.server.notes import collected
from npdiffusion.server.queue import Turns
from npdiffusion.settings import IN_PYTHON, STEPS, Request

LOG = logging.getLogger("npdiffusion.server")
REMEMBERED = 200                      # jobs that are over, in memory
GUESS = 2e-6                          # seconds for a pixel and step, before any is measured


class Unwanted(Exception):
    """The picture at work is not wanted any more."""


class Engine:
    """Jobs and the thread that makes their pictures.

    load       from a model's name, and keywords of npdiffusion.load for what leads, to its pipeline; called in that thread
    catalogue  a `Catalogue`      store, gallery: where what is kept is kept      names: {"vae": …} for the text in pictures
    """
    def __init__(self, load, catalogue, store, gallery, vae=None):
        self.load, self.catalogue, self.store, self.gallery, self.vae = load, catalogue, store, gallery, vae
        self.turns, self.recent, self.now = Turns(), {}, None        # self.now: the job at work
        self.lock = threading.Lock()
        self.work = threading.Condition(self.lock)
        self.stopping, self.ready = False, threading.Event()
        self.failure, self.pipeline, self.colours = None, None, None
        self.loaded, self.led = None, leading.NONE       # name of the model that is there, and of what leads
        self.looks, self.reports = {}, {}                # number of a picture → what `looking.look` found, its report
        self.rate = GUESS                                # seconds for a pixel and step, as measured lately
        self.thread = threading.Thread(target=self._run, name="pictures", daemon=True)

    # ---- from outside

    def start(self, failed=None):
        """Take up what was waiting, start the thread and wait until the model is loaded; raises what that raised.

        failed: then it isn't waited for; this is called if the model can't be loaded, which is `failure`
        """
        self.failed = failed
        for job in self.store.waiting():
            self.turns.add(job, checked=False)
        self.thread.start()
        if failed is not None:
            return
        self.ready.wait()
        if self.failure is not None:
            raise self.failure

    def stop(self):
        """Let the picture at work end at its next step; its job waits again, for the next server."""
        with self.lock:
            self.stopping = True
            self.work.notify_all()

    @functools.cached_property
    def folders(self):
        """Paths that answers must not tell"""
        return [str(self.gallery.folder.absolute()), *folders(self.catalogue)]

    @property
    def alive(self):
        """Whether pictures are made."""
        return self.thread.is_alive() and not self.stopping

    def prepare(self, request, model, led=leading.NONE):
        """What can be said of a request before it waits → what it comes to (`request.Resolved`), or None if that is for later

        Raises UserError for what can't be made, TooMuch for what is too large. Warnings are the caller's to collect.
        """
        with self.lock:
            pipeline, same = self.pipeline if self.loaded == model else None, led == self.led
        limits.check(request, pipeline.size[0] if pipeline else 512)
        self.catalogue.check_adapters(request.prompt)
        leading.check_pairs(led, request)
        if pipeline is None or same:
            return None if pipeline is None else pipeline.resolve(request)
        return resolve(request, leading.Outlook(pipeline, self._places(led)))

    def submit(self, request, client, api="api", model=None, kept=True, look=None, task=None, led=leading.NONE,
               whole=False):
        """A checked request → the job that it becomes; others as of `Job`. Raises UserError; Busy if too many wait."""
        model, led, notes = self.catalogue.model(model), leading.looked_up(led, self.catalogue.leaders), []
        seeds, subseeds = request.seeds()
        request = request.changed(seed=seeds[0], subseed=subseeds[0] if subseeds else request.subseed)
        with collected(notes):
            resolved = self.prepare(request, model, led)
        if resolved is not None:
            notes += resolved.notes(IN_PYTHON)
            notes += [resolved.reason] if resolved.reason else []
        job = Job(client, api, model, request.count, seeds[0], request.prompt, cost(request, resolved), kept, notes=notes,
                  look=look, task=task, led=led, whole=whole)
        text = request.to_json()
        with self.lock:
            if self.stopping:
                raise limits.Busy("the server is about to end")
            self.turns.add(job)
            try:
                self.store.add(job, text)
            except BaseException:
                self.turns.remove(job)
                raise
            self.work.notify_all()
        return job

    def find(self, id):
        """The job of that id, or None"""
        with self.lock:
            found = self.turns.jobs.get(id) or self.recent.get(id)
        return found or self.store.find(id)

    def called(self, task):
        """The job that its client calls so, or that has this id, in memory; or None"""
        with self.lock:
            jobs = [*self.recent.values(), *self.turns.jobs.values()]
        return next((job for job in reversed(jobs) if task in (job.task, job.id)), None)

    def active(self):
        """Jobs that are not over, in the order in which they came"""
        with self.lock:
            return sorted(self.turns.jobs.values(), key=lambda job: job.created)

    def cancel(self, job):
        """Nobody wants a job any more: one that waits is gone at once, one at work at its next step."""
        with self.lock:
            if job.over or job.id not in self.turns.jobs:
                return
            job.unwanted = True
            if job is not self.now:
                self._over(job, CANCELLED)

    def skip(self, job):
        """Go on with the next picture of a job, if it is at work."""
        with self.lock:
            job.skipped = job is self.now

    def outlook(self, job):
        """Pictures before the next one of a job, and seconds until it is over, as far as can be said → (number, seconds)"""
        with self.lock:
            if job.id not in self.turns.jobs:
                return 0, 0.0
            now, number, cost = self.now, 0, 0.0
            if job is not now:
                number, cost = self.turns.ahead(job, now)
                if now is not None:
                    number, cost = number + 1, cost + now.cost
            cost += job.left * job.cost
            if now is not None and now.steps:            # what is done of the picture at work
                cost -= min(now.step / now.steps, 1) * now.cost
            return number, max(0.0, cost * self.rate)

    def preview(self, job):
        """x̂₀ of the picture at work as a PIL image, or None"""
        x0, colours = job.x0, self.colours
        if x0 is None or colours is None or x0.shape[-1] != colours.channels:
            return None
        return to_images(colours(x0).clip(-1, 1))[0]

    # ---- in the thread

    def _run(self):
        try:
            self._get(self.catalogue.default)
        except BaseException as error:      # noqa: BLE001, start() raises it, or whoever is told of it
            self.failure = error
            if self.failed is not None:
                self.failed()
            return
        finally:
            self.ready.set()
        while not self.stopping:
            try:
                self._one()
            except Exception:               # the disk may be full; the thread goes on whatever happens
                LOG.exception("a picture could not be dealt with")
                time.sleep(1)

    def _one(self):
        """Wait for a job and make a picture of it."""
        with self.lock:
            while not self.stopping and (job := self.turns.next((self.loaded, self.led))) is None:
                self.work.wait()
            if self.stopping:
                return
            self.now, job.skipped, job.step, job.steps, job.x0 = job, False, 0, 0, None
            job.state, job.tries, job.started, job.since = RUNNING, job.tries + 1, job.started or time.time(), time.monotonic()
        state, error = None, None
        try:
            self.store.write(job)
            job.changed()
            with collected(job.notes):
                self._make(job)
        except Unwanted:
            state = None if job.skipped and not job.unwanted else CANCELLED
        except UserError as mistake:
            state, error = FAILED, mistake
        except MemoryError:
            state, error = FAILED, UserError("there is not enough memory for this picture")
        except Exception as mistake:        # it must not end the others' pictures
            LOG.exception("a mistake in npdiffusion")
            state, error = FAILED, UserError(f"a mistake in npdiffusion ({type(mistake).__name__}); its log has more")
        with self.lock:
            self.now, job.x0 = None, None
            if self.stopping and state == CANCELLED and job.kept and not job.unwanted:
                state = QUEUED                           # dropped, for the next server to make
            elif state is None:
                job.number += 1
                state = DONE if job.number == job.count else RUNNING
            job.tries = 0
            if state in (QUEUED, RUNNING):
                job.state = state
                self.store.write(job)
            else:
                job.error = error and str(error)
                self._over(job, state)
        job.changed()

    def _make(self, job):
        """The next picture of a job, in its place"""
        pipeline = self._get(*job.needs)
        request = Request.from_json(self.store.request(job))
        if job.look is not None:
            kept, most = (self.reports, looking.MOST_REPORTS) if job.whole else (self.looks, looking.MOST_KEPT)
            kept[job.look] = (looking.report if job.whole else looking.look)(pipeline, request, Watcher(self, job))
            while len(kept) > most:
                kept.pop(next(iter(kept)))
            return
        entry = one_by_one(request)[job.number]
        entry.asked = {"job": job.id, "picture": job.number} | job.led.given()
        place = self.gallery if job.kept else Results(job)
        if not (job.kept and job.tries > 1 and self.gallery.done(entry)):
            job.since = time.monotonic()
            watcher = Watcher(self, job)
            render(pipeline, [entry], job.count, place, watcher, self.catalogue.place(job.model), self.vae,
                   previews=functools.partial(remember, job), make=ended_by(watcher.check, pipeline.make))
            seconds = time.monotonic() - job.since
            self.rate += 0.3 * (seconds / job.cost - self.rate)
        if job.kept:
            job.pictures.append(self.gallery.number(entry))

    def _get(self, model, led=leading.NONE):
        """The pipeline of a model and what leads it, loaded if it is another one than the last"""
        if (self.loaded, self.led) != (model, led):
            places = self._places(led)
            self.pipeline = self.loaded = self.colours = None        # their memory is free before more is taken
            pipeline = self.load(model, **places)
            self.colours = Linear(pipeline.vae)
            self.colours.channels = pipeline.vae.config.latent_channels
            with self.lock:
                self.pipeline, self.loaded, self.led = pipeline, model, led
        return self.pipeline

    def _places(self, led):
        return leading.places(leading.looked_up(led, self.catalogue.leaders), self.catalogue.leaders)

    def _over(self, job, state):
        """A job is at its end. The lock is held."""
        job.state, job.ended = state, time.time()
        self.turns.remove(job)
        self.recent[job.id] = job
        while len(self.recent) > REMEMBERED:
            self.recent.pop(next(iter(self.recent)))
        (self.store.write if job.kept else self.store.forget)(job)
        job.changed()


class Watcher(Listener):
    """Ends a picture that nobody wants, and tells how far it is."""
    def __init__(self, engine, job):
        self.engine, self.job = engine, job

    def begins(self, number, total, entry, resolved, inputs):
        self.job.steps = resolved.planned
        self.job.cost = cost(resolved.request, resolved)
        self.step(0, resolved.planned, None)

    def step(self, done, total, latents):
        self.check()
        self.job.step = done
        self.job.changed()

    def check(self):
        """Raise Unwanted if nobody wants the picture any more."""
        if self.job.unwanted or self.job.skipped or self.engine.stopping:
            raise Unwanted


def remember(job, step, steps, x0):
    """Keep the latest x̂₀; a picture is made of it only if somebody asks."""
    job.x0 = x0[:1].copy()


def cost(request, resolved=None):
    """What a picture takes: pixels × steps of all passes"""
    if resolved is None:
        width, height, steps = request.width or 512, request.height or 512, request.steps or STEPS
        return float(width * height * steps)
    return float(sum(way.canvas.size[0] * way.canvas.size[1] * states(way) for way in resolved.passes))
