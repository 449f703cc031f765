"""A server under test: the real one on a free port of 127.0.0.1, in a thread, with the embedded model or a fake one.

Fixtures `real` and `fake` of conftest.py start it. `start_process` has one in a process of its own, which may be killed.
"""
import base64
import contextlib
import http.client
import io
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import numpy as np
from PIL import Image

import npdiffusion
from npdiffusion.server.app import make_server, serve
from npdiffusion.server.catalogue import Catalogue
from npdiffusion.server.engine import Engine
from npdiffusion.server.gallery import Gallery
from npdiffusion.server.store import Store


class Served:
    """What a test sees of a server: `url`, `engine`, `folder`; `call` sends a request."""
    def __init__(self, engine, port, folder):
        self.engine, self.port, self.folder, self.url = engine, port, folder, f"http://127.0.0.1:{port}"

    def call(self, method, path, content=None, body=None, **headers):
        """Send a request, with JSON or a body → status, headers, JSON if it is some, else bytes; _ in a header's name is -"""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if content is not None:
            body, headers = json.dumps(content), {"content-type": "application/json"} | headers
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        kind = answer.getheader("content-type", "")
        return answer.status, answer.headers, json.loads(content) if kind.startswith("application/json") else content

    def get(self, path, **headers):
        return self.call("GET", path, **headers)[2]

    def post(self, path, content=None, **headers):
        return self.call("POST", path, {} if content is None else content, **headers)[2]

    def finished(self, job, seconds=60):
        """A job of /api/jobs, when it is over"""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            state = self.get(f"/api/jobs/{job['id']}")
            if state["state"] in ("done", "failed", "cancelled"):
                return state
            time.sleep(0.02)
        raise AssertionError(f"{job['id']} is not over: {state}")


@contextlib.contextmanager
def served(folder, pipeline=None, key=None, host="127.0.0.1", allowed=(), loaders=None, at_once=False, **folders):
    """Within, a server answers whose pictures go to a folder

    pipeline: None is the embedded model      at_once: before that is loaded
    """
    folder.mkdir(exist_ok=True)
    gallery, store = Gallery(folder), Store(folder)
    own = {name: folders.get(name) for name in ("lora_dir", "embedding_dir")}
    load = loaders or (lambda name, **leading: pipeline or npdiffusion.load(**own, **leading))
    engine = Engine(load, Catalogue(**folders), store, gallery)
    listening = socket.create_server(("127.0.0.1", 0), backlog=1500)
    try:
        engine.start((lambda: None) if at_once else None)
        server = make_server(engine, host, allowed, key)
        thread = threading.Thread(target=serve, args=(server, listening), daemon=True)
        thread.start()
        yield Served(engine, listening.getsockname()[1], folder)
    finally:
        engine.stop()
        if engine.ready.is_set() and engine.failure is None:
            server.should_exit = True
            thread.join(30)
        listening.close()
        gallery.close()
        store.close()


class Gate:
    """What a fake pipeline does while it is closed: wait. reached: a picture has come to it      event: it is open"""
    def __init__(self, pipeline):
        self.event, self.reached = threading.Event(), threading.Event()
        pipeline.act = self

    def __call__(self):
        self.reached.set()
        assert self.event.wait(30)


def png(image):
    """A PIL image as a PNG file in base64"""
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def pixels(content):
    """A file's content → its array"""
    return np.asarray(Image.open(io.BytesIO(content)))


def start_process(folder, port, *options):
    """A server in a process of its own, when it answers → the process, the lines that it said"""
    code = "from npdiffusion.command.cli import main; import sys; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen([sys.executable, "-c", code, "serve", "--port", str(port), "-o", f"{folder}/", *options],
                               stderr=subprocess.PIPE, text=True)
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "listens" in line:
            return process, lines
    raise AssertionError(lines)


def ask(port, path, content=None):
    """The JSON that a server at a port answers"""
    body = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())
