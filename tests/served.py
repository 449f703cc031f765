"""A server under test: the real one on a free port of 127.0.0.1, in a thread, with the embedded model or a fake one."""
import contextlib
import http.client
import json
import socket
import threading
import time

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
def served(folder, pipeline=None, key=None, host="127.0.0.1", allowed=(), loaders=None, **folders):
    """Within, a server answers whose pictures go to a folder; pipeline: None is the embedded model."""
    folder.mkdir(exist_ok=True)
    gallery, store = Gallery(folder), Store(folder)
    own = {name: folders.get(name) for name in ("lora_dir", "embedding_dir")}
    load = loaders or (lambda name: pipeline or npdiffusion.load(**own))
    engine = Engine(load, Catalogue(**folders), store, gallery)
    listening = socket.create_server(("127.0.0.1", 0), backlog=1500)
    try:
        engine.start()
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
