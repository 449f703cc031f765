"""Jobs on disk: jobs.sqlite in the folder of the pictures.

A job is accepted when its row is there. Whenever the server is killed, the next one finds what was waiting and makes it;
which pictures of a job are done is in the manifest beside it (jobs/manifest.py), so none is made twice. A job during whose
picture the server ended MOST_TRIES times may be the reason for it, and is given up.
"""
import json
import sqlite3
import threading

from npdiffusion.errors import UserError
from npdiffusion.server import leading
from npdiffusion.server.job import FAILED, QUEUED, RUNNING, Job

NAME = "jobs.sqlite"
MOST_TRIES = 3
COLUMNS = ("id", "client", "api", "model", "count", "seed", "prompt", "cost", "kept", "state", "created", "started", "ended",
           "tries", "number", "error", "notes", "pictures", "led")
TABLE = f"CREATE TABLE IF NOT EXISTS jobs (place INTEGER PRIMARY KEY, {', '.join(COLUMNS)}, request, UNIQUE (id))"
WRITTEN = ("state", "started", "ended", "tries", "number", "error", "notes", "pictures")      # as a job goes on
MOST_KEPT = 10_000                    # rows of jobs that are over


class Store:
    """The table of a folder; UserError if it can't be written, or is damaged. Any thread may call."""
    def __init__(self, folder):
        self.path, self.lock = folder / NAME, threading.Lock()
        try:
            self.db = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None)
            self.db.execute("PRAGMA journal_mode = WAL")
            self.db.execute("PRAGMA synchronous = NORMAL")           # survives a kill; a power cut may take the last moments
            self.db.execute(TABLE)
            there = {name for _, name, *_ in self.db.execute("PRAGMA table_info(jobs)")}
            for name in COLUMNS:
                if name not in there:                    # a table of an earlier version
                    self.db.execute(f"ALTER TABLE jobs ADD COLUMN {name}")
            self.db.execute("CREATE INDEX IF NOT EXISTS states ON jobs (state)")
        except sqlite3.Error as error:
            raise UserError(f"{self.path}: can't be used ({error}); mend it, or take another folder with --output") from None

    def close(self):
        with self.lock:
            self.db.close()

    def _do(self, statement, values=()):
        with self.lock:
            return self.db.execute(statement, values).fetchall()

    def add(self, job, request):
        """Write a job down, with its request as JSON; it is on disk when this returns."""
        values = [*row(job).values(), request]
        self._do(f"INSERT INTO jobs ({', '.join(COLUMNS)}, request) VALUES ({', '.join('?' * len(values))})", values)

    def write(self, job):
        """Write down how far a job is; of one that is over the request, with its pictures, is not needed any more."""
        found, drop = row(job), ", request = NULL" * job.over
        self._do(f"UPDATE jobs SET {', '.join(f'{name} = ?' for name in WRITTEN)}{drop} WHERE id = ?",
                 [*(found[name] for name in WRITTEN), job.id])

    def forget(self, job):
        """Remove the row of a job."""
        self._do("DELETE FROM jobs WHERE id = ?", [job.id])

    def request(self, job):
        """The request of a job, as JSON"""
        (text,), = self._do("SELECT request FROM jobs WHERE id = ?", [job.id])
        return text

    def find(self, id):
        """The job of that id, or None"""
        return next(iter(self._jobs("WHERE id = ?", [id])), None)

    def latest(self, count):
        """The jobs that were over last, the last one first"""
        return self._jobs("WHERE state NOT IN (?, ?) ORDER BY ended DESC LIMIT ?", [QUEUED, RUNNING, count])

    def waiting(self):
        """Jobs that an earlier server has left, in their order; those that nobody waits for any more are taken out."""
        self._do("DELETE FROM jobs WHERE NOT kept")
        self._do("DELETE FROM jobs WHERE place <= (SELECT MAX(place) FROM jobs) - ? AND state NOT IN (?, ?)",
                 [MOST_KEPT, QUEUED, RUNNING])
        found = self._jobs("WHERE state IN (?, ?) ORDER BY place", [QUEUED, RUNNING])
        for job in found:
            if job.tries >= MOST_TRIES:
                job.state, job.error = FAILED, f"the server ended {job.tries} times while it was at work on it"
            else:
                job.state = QUEUED
            self.write(job)
        return [job for job in found if job.state == QUEUED]

    def _jobs(self, where, values):
        found = []
        for line in self._do(f"SELECT {', '.join(COLUMNS)} FROM jobs {where}", values):
            read = dict(zip(COLUMNS, line))
            lists = {name: json.loads(read[name]) for name in ("notes", "pictures")} | {"seed": int(read["seed"])}
            led = leading.take(json.loads(read["led"] or "{}"))
            found.append(Job(**read | lists | {"kept": bool(read["kept"]), "led": led}))
        return found


def row(job):
    """{column: value} of a job"""
    found = {name: getattr(job, name) for name in COLUMNS}
    lists = {"notes": job.notes, "pictures": job.pictures, "led": job.led.given()}
    return found | {name: json.dumps(value) for name, value in lists.items()} | {"seed": str(job.seed)}
