"""All routes together, behind the guard; and the server that runs them.

    /            the page          /api/…          our own interface, jobs_api.py
    /sdapi/v1/…  AUTOMATIC1111's, sdapi.py        /v1/…    OpenAI's, openai_api.py; openapi.py
"""
import asyncio
import base64
import hashlib
import importlib.resources
import logging
import re
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route

from npdiffusion.errors import UserError
from npdiffusion.server import jobs_api, limits, openai_api, openapi, reading, sdapi, sdapi_control
from npdiffusion.server.guard import POLICY, Guard
from npdiffusion.server.notes import handed_out

LOG = logging.getLogger("npdiffusion.server")
SWITCH = 0.0005                       # seconds after which the thread of the pictures lets another one have Python's lock
GRACE = 3                             # seconds that connections have to end when the server does


def application(engine, host="127.0.0.1", allowed=(), key=None):
    """The ASGI application of an engine; the rest is for `Guard`."""
    page = importlib.resources.files("npdiffusion.server").joinpath("page.html").read_bytes()
    head = {"cache-control": "no-cache", "content-security-policy": policy(page)}

    async def show(request):
        """The page"""
        return Response(page, media_type="text/html", headers=head)

    app = Starlette(routes=[Route("/", show), *jobs_api.ROUTES, *sdapi.ROUTES, *sdapi_control.ROUTES,
                            *openai_api.ROUTES, *openapi.ROUTES],
                    exception_handlers={UserError: told, LookupError: unknown, ClientDisconnect: gone,
                                        HTTPException: told_status, Exception: mistake})
    app.state.options = sdapi.fresh_options()
    app.state.engine, app.state.large = engine, asyncio.Semaphore(limits.LARGE_AT_ONCE)
    return Guard(app, host, allowed, key)


def policy(page):
    """The policy of the page: its own script and style, known by their hashes, and no other"""
    hashed = []
    for kind, tag in (("script-src", b"script"), ("style-src", b"style")):
        inside = re.search(rb"<%s>(.*?)</%s>" % (tag, tag), page, re.DOTALL)[1]
        hashed.append(f"{kind} 'sha256-{base64.b64encode(hashlib.sha256(inside).digest()).decode()}'")
    return "; ".join([POLICY, *hashed])


# ---- what goes wrong, without paths and tracebacks

def refuse(request, status, message, more=None, mistake=None):
    """An answer about a mistake, in the form that the interface has"""
    forms = {"sdapi": sdapi, "internal": sdapi, "controlnet": sdapi, "v1": openai_api}
    return forms.get(request.url.path.split("/")[1], jobs_api).refused(request, status, message, more, mistake)


def status_of(error):
    """The status that tells of a UserError"""
    if hasattr(error, "status"):
        return error.status
    return 503 if isinstance(error, limits.Busy) else 413 if isinstance(error, limits.TooMuch) else 400


async def told(request, error):
    message = reading.without_paths(error, request.app.state.engine.folders)
    more = {"retry-after": "30", "x-should-retry": "false"} if isinstance(error, limits.Busy) else {}
    return refuse(request, status_of(error), message, more, error)


async def unknown(request, error):
    return refuse(request, 404, f"there is no such {error}")


async def gone(request, error):
    return refuse(request, 400, "the request ended too soon")


async def told_status(request, error):
    return refuse(request, error.status_code, error.detail, error.headers)


async def mistake(request, error):
    LOG.error("a mistake in npdiffusion", exc_info=error)
    return refuse(request, 500, "a mistake in npdiffusion; its log has more")


# ---- running

class Server(uvicorn.Server):
    """Ends the picture at work as soon as it is told to end, so that streams and waiting answers end as well."""
    def __init__(self, config, engine):
        super().__init__(config)
        self.engine = engine

    def handle_exit(self, sig, frame):
        self.engine.stop()
        super().handle_exit(sig, frame)


def make_server(engine, host="127.0.0.1", allowed=(), key=None):
    """A `Server` that is ready to run; the engine has been started."""
    config = uvicorn.Config(application(engine, host, allowed, key), log_config=None, access_log=False, lifespan="off",
                            http="h11", ws="none", loop="asyncio", server_header=False, timeout_keep_alive=30,
                            limit_concurrency=limits.MOST_CONNECTIONS, timeout_graceful_shutdown=GRACE)
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    return Server(config, engine)


def serve(server, socket):
    """Answer on a socket that listens until a signal, or `should_exit`, ends it; the engine is stopped then."""
    engine, before = server.engine, sys.getswitchinterval()
    with handed_out():
        try:
            sys.setswitchinterval(SWITCH)
            server.run(sockets=[socket])
        finally:
            sys.setswitchinterval(before)
            engine.stop()
            if engine.ready.is_set():                    # what loads for minutes is not waited for
                engine.thread.join(60)
