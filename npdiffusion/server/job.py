"""What is known of a request on its way: a job, of one picture or several.

    queued → running → done, failed or cancelled         queued again, if the server ends in between
"""
import asyncio
import contextlib
import secrets
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from npdiffusion.server.leading import NONE, Led

QUEUED, RUNNING, DONE, FAILED, CANCELLED = STATES = ("queued", "running", "done", "failed", "cancelled")


@dataclass(eq=False)
class Job:
    """A request and how far it is. The thread that makes pictures writes here, others read.

    kept      whether it outlives the server and its pictures go to the gallery; else they are in `results` alone
    cost      what a picture of it takes, as pixels times steps
    pictures  numbers of its pictures in the gallery; of one that isn't kept, `results` has (PNG file, record) of each
    look      number of the picture that is looked into instead of making a new one      whole: for the whole report
    task      what its client calls it, if it does
    led       names of what leads it beside the prompt
    unwanted  it is to end at the next step      skipped: this picture of it is
    """
    client: str
    api: str
    model: str
    count: int
    seed: int
    prompt: str
    cost: float
    kept: bool = True
    id: str = field(default_factory=lambda: secrets.token_urlsafe(9))
    state: str = QUEUED
    created: float = field(default_factory=time.time)
    started: float | None = None
    ended: float | None = None
    tries: int = 0
    number: int = 0                   # pictures that are dealt with
    step: int = 0                     # of the picture at work
    steps: int = 0
    since: float = 0.0                # when that picture was begun, time.monotonic()
    x0: Any = None                    # denoised estimate of the latents, after the step
    error: str | None = None
    notes: list = field(default_factory=list)
    pictures: list = field(default_factory=list)
    results: list = field(default_factory=list)
    look: int | None = None
    whole: bool = False
    task: str | None = None
    led: Led = NONE
    unwanted: bool = False
    skipped: bool = False

    def __post_init__(self):
        self.version, self._wakers, self._lock = 0, set(), threading.Lock()

    @property
    def needs(self):
        """What has to be loaded for it."""
        return self.model, self.led

    @property
    def over(self):
        """Whether nothing will happen any more."""
        return self.state in (DONE, FAILED, CANCELLED)

    @property
    def left(self):
        """How many of its pictures are not made yet."""
        return 0 if self.over else self.count - self.number

    def changed(self):
        """Wake all who wait for news."""
        with self._lock:
            self.version += 1
            wakers, self._wakers = self._wakers, set()
        for wake in wakers:
            with contextlib.suppress(RuntimeError):      # its event loop is closed
                wake()

    async def news(self, version, timeout):
        """Return when something changed since `version`, or after so many seconds."""
        event, loop = asyncio.Event(), asyncio.get_running_loop()

        def wake():
            loop.call_soon_threadsafe(event.set)
        with self._lock:
            if self.version != version or self.over:
                return
            self._wakers.add(wake)
        try:
            await asyncio.wait_for(event.wait(), timeout)
        except asyncio.TimeoutError:
            pass
        finally:
            with self._lock:
                self._wakers.discard(wake)

    async def end(self):
        """Return when it is over."""
        while not self.over:
            await self.news(self.version, 60)
