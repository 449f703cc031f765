"""The server under load, in a process of its own with the embedded model, and what it holds then.

    python -m bench serve                  requests a second; 1,000 requests of 50 clients, of which half vanish
    python -m bench serve --kills 50       1,000 jobs while the server is killed 50 times: each is there once

MB are the resident part of the process.
"""
import contextlib
import http.client
import json
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time

from bench import turns
from npdiffusion.errors import UserError

LONG = 900                            # steps of a picture that is at work meanwhile
ASKED = {"progress": "/sdapi/v1/progress?skip_current_image=true", "options": "/sdapi/v1/options"}


def add_arguments(parser):
    parser.add_argument("--requests", type=int, default=1000, help="how many, at most 1000 (default 1000)")
    parser.add_argument("--clients", type=int, default=50, help="of how many (default 50)")
    parser.add_argument("--steps", type=int, default=4, help="of each picture (default 4)")
    parser.add_argument("--kills", type=int, default=0, help="how often the server is killed (default 0)")
    parser.add_argument("--seed", type=int, default=0, help="of when it is killed (default 0)")


def run(arguments):
    """The server under load, or killed again and again."""
    with tempfile.TemporaryDirectory() as folder:
        found = (killed if arguments.kills else asked)(Server(pathlib.Path(folder)), arguments)
    turns.table([("", ".1f")], [*found.items()])
    turns.last_line(benchmark="serve", requests=arguments.requests, clients=arguments.clients, **found)


class Server:
    """A server on a free port, its pictures in a folder"""
    def __init__(self, folder):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.folder = folder
        self.start()

    def start(self):
        words = [sys.executable, "-m", "npdiffusion", "serve", "--port", str(self.port), "-o", f"{self.folder}/"]
        self.process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        if not any("listens" in line for line in self.process.stderr):
            raise UserError("the server did not start")

    def end(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        self.process.wait(60)
        self.process.stderr.close()

    def ask(self, path, content=None, client="", connection=None):
        """The answer; content makes it a POST"""
        body = None if content is None else json.dumps(content)
        headers = {"content-type": "application/json", "x-client": client}
        with contextlib.ExitStack() as stack:
            connection = connection or stack.enter_context(contextlib.closing(self.connect()))
            connection.request("GET" if content is None else "POST", path, body, headers)
            return json.loads(connection.getresponse().read())

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)

    def megabytes(self):
        lines = pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

    def waiting(self):
        return self.ask("/internal/pending-tasks")["size"]


def asked(server, arguments):
    """Requests a second beside a picture; many requests, half of whose clients vanish → {what: number}"""
    make = {"prompt": "a cat", "steps": arguments.steps}
    server.ask("/v1/images/generations", make)
    found = {"MB before": server.megabytes()}
    long = server.ask("/api/jobs", make | {"steps": LONG})
    for name, path in ASKED.items():
        found[f"{name} a second"], found[f"{name} p99 ms"] = rate(server, path)
    server.ask(f"/api/jobs/{long['id']}/cancel", {})
    long, start, sockets = server.ask("/api/jobs", make | {"steps": LONG}), time.monotonic(), []
    for number in range(arguments.requests - 1):
        body = json.dumps(make | {"seed": number, "user": f"client {number % arguments.clients}"}).encode()
        sockets.append(socket.create_connection(("127.0.0.1", server.port), timeout=600))
        sockets[-1].sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                            b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    while server.waiting() < len(sockets):
        time.sleep(0.05)
    found |= {"s until all are queued": time.monotonic() - start, "MB with all queued": server.megabytes()}
    for each in sockets[1::2]:
        each.close()
    server.ask(f"/api/jobs/{long['id']}/cancel", {})
    start, answers = time.monotonic(), []
    for each in sockets[::2]:
        with each.makefile("rb") as file:
            answers.append(b'"b64_json"' in file.read())
        each.close()
    found |= {"pictures": sum(answers), "s until they are made": time.monotonic() - start, "MB at the end": server.megabytes(),
              "left": len(server.ask("/api/jobs")["active"])}
    server.end()
    if not all(answers) or found["left"]:
        raise UserError(f"{sum(answers)} of {len(answers)} answers have a picture, {found['left']} jobs are left")
    return found


def rate(server, path, seconds=5):
    """Requests a second of one client, and the milliseconds that 99 in 100 take at most"""
    times, end = [], time.monotonic() + seconds
    with contextlib.closing(server.connect()) as connection:
        while time.monotonic() < end:
            start = time.monotonic()
            server.ask(path, connection=connection)
            times.append(time.monotonic() - start)
    return len(times) / seconds, 1000 * sorted(times)[len(times) * 99 // 100]


def killed(server, arguments):
    """Jobs, and a server that is killed at random moments → {what: number}; UserError unless each is there once, but for those
    that were at work three times when it was killed: they are given up, and told as failed"""
    jobs = [server.ask("/api/jobs", {"prompt": "a cat", "steps": arguments.steps, "seed": number},
                       f"client {number % arguments.clients}")["id"] for number in range(arguments.requests)]
    rng, kills, start = random.Random(arguments.seed), 0, time.monotonic()
    while kills < arguments.kills and server.ask("/api/jobs")["active"]:
        time.sleep(rng.uniform(0, 3))
        server.end(signal.SIGKILL)
        kills += 1
        server.start()
    while server.ask("/api/jobs")["active"]:
        time.sleep(0.5)
    states = [server.ask(f"/api/jobs/{job}")["state"] for job in jobs]
    found = {"kills": kills, "given up": states.count("failed"),
             "s until all are made": time.monotonic() - start, "MB at the end": server.megabytes()}
    server.end()
    lines = [json.loads(line) for line in (server.folder / "manifest.jsonl").read_text().splitlines()]
    files = sorted(path.name for path in server.folder.glob("*.png"))
    seeds, names = (sorted(line[name] for line in lines) for name in ("seed", "file"))
    done = {seed for seed, state in enumerate(states) if state == "done"}
    if len(seeds) != len({*seeds}) or not done <= {*seeds} or names != files or {*states} - {"done", "failed"}:
        raise UserError(f"{len(lines)} lines and {len(files)} files of {states.count('done')} jobs that are done")
    return found
