"""All routes together, behind the guard; and the server that runs them.

    /            the page          /api/…          our own interface, jobs_api.py
"""
import asyncio
import importlib.resources
import logging

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from npdiffusion.errors import UserError
from npdiffusion.server import jobs_api, limits, reading
from npdiffusion.server.guard import Guard
from npdiffusion.server.notes import handed_out

LOG = logging.getLogger("npdiffusion.server")
GRACE = 3                             # seconds that connections have to end when the server does


def application(engine, host="127.0.0.1", allowed=(), key=None):
    """The ASGI application of an engine; the rest is for `Guard`."""
    page = importlib.resources.files("npdiffusion.server").joinpath("page.html").read_bytes()

    async def show(request):
        return Response(page, media_type="text/html", headers={"cache-control": "no-cache"})

    app = Starlette(routes=[Route("/", show), *jobs_api.ROUTES],
                    exception_handlers={UserError: told, LookupError: unknown, HTTPException: told_status, Exception: mistake})
    app.state.engine, app.state.large = engine, asyncio.Semaphore(limits.LARGE_AT_ONCE)
    return Guard(app, host, allowed, key)


# ---- what goes wrong, without paths and tracebacks

def status_of(error):
    """The status that tells of a UserError"""
    return 503 if isinstance(error, limits.Busy) else 413 if isinstance(error, limits.TooMuch) else 400


async def told(request, error):
    message = reading.without_paths(error, request.app.state.engine.folders)
    more = {"retry-after": "30", "x-should-retry": "false"} if isinstance(error, limits.Busy) else {}
    return jobs_api.refused(request, status_of(error), message, more)


async def unknown(request, error):
    return jobs_api.refused(request, 404, f"there is no such {error}")


async def told_status(request, error):
    return jobs_api.refused(request, error.status_code, error.detail, error.headers)


async def mistake(request, error):
    LOG.error("a mistake in npdiffusion", exc_info=error)
    return jobs_api.refused(request, 500, "a mistake in npdiffusion; its log has more")


# ---- running

class Server(uvicorn.Server):
    """Ends the picture at work as soon as it is told to end, so that streams and waiting answers end as well."""
    def __init__(self, config, engine):
        super().__init__(config)
        self.engine = engine

    def handle_exit(self, sig, frame):
        self.engine.stop()
        super().handle_exit(sig, frame)


def serve(engine, socket, host="127.0.0.1", allowed=(), key=None):
    """Answer on a socket that listens until a signal ends it; the engine has been started and is stopped then."""
    config = uvicorn.Config(application(engine, host, allowed, key), log_config=None, access_log=False, lifespan="off",
                            http="h11", ws="none", loop="asyncio", server_header=False, timeout_keep_alive=30,
                            limit_concurrency=limits.MOST_CONNECTIONS, timeout_graceful_shutdown=GRACE)
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    with handed_out():
        try:
            Server(config, engine).run(sockets=[socket])
        finally:
            engine.stop()
            engine.thread.join(60)
