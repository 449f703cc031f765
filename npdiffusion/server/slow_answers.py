"""Answers that take long: a picture may need ten minutes on a CPU, and clients give up after one, or five, in silence.

The answer is an ordinary one if it is there within PATIENCE seconds. After that its head is sent, 200, and a space every
BETWEEN seconds until the body follows: white space before JSON means nothing, but bytes arrive. So what is wrong with a
request has to be found before it waits; what goes wrong later is an error in the body.

A client that goes away takes its job with it.
"""
import asyncio
import json

PATIENCE, BETWEEN = 5, 10


class Waiting:
    """ASGI: the answer about a job, JSON. finish: coroutine function, from the job at its end to (status, dictionary)"""
    def __init__(self, engine, job, finish, patience=None, between=None):
        self.engine, self.job, self.finish = engine, job, finish
        self.patience, self.between = patience or PATIENCE, between or BETWEEN

    async def __call__(self, scope, receive, send):
        gone, over = asyncio.ensure_future(client_gone(receive)), asyncio.ensure_future(self.job.end())
        begun = False
        try:
            done, _ = await asyncio.wait({gone, over}, timeout=self.patience, return_when=asyncio.FIRST_COMPLETED)
            while not done:
                if not begun:
                    begun = True
                    await send(start(200))
                await send({"type": "http.response.body", "body": b" ", "more_body": True})
                done, _ = await asyncio.wait({gone, over}, timeout=self.between, return_when=asyncio.FIRST_COMPLETED)
            if over not in done:
                return
            status, answer = await self.finish(self.job)
            if not begun:
                await send(start(status))
            await send({"type": "http.response.body", "body": json.dumps(answer).encode()})
        finally:
            self.engine.cancel(self.job)                 # nothing happens if it is over
            self.job.results.clear()
            gone.cancel()
            over.cancel()


class Events:
    """ASGI: a stream of server-sent events. messages: asynchronous generator of (event, dictionary)"""
    def __init__(self, messages, ended=None):
        self.messages, self.ended = messages, ended

    async def __call__(self, scope, receive, send):
        async def tell():
            await send(start(200, "text/event-stream; charset=utf-8"))
            async for event, data in self.messages:
                text = f"event: {event}\ndata: {json.dumps(data)}\n\n" if data is not None else ": still here\n\n"
                await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        gone, telling = asyncio.ensure_future(client_gone(receive)), asyncio.ensure_future(tell())
        try:
            await asyncio.wait({gone, telling}, return_when=asyncio.FIRST_COMPLETED)
            if telling.done():
                telling.result()
        finally:
            gone.cancel()
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
            if self.ended:
                self.ended()


async def client_gone(receive):
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def start(status, kind="application/json"):
    """The head of an answer"""
    return {"type": "http.response.start", "status": status,
            "headers": [(b"content-type", kind.encode()), (b"cache-control", b"no-store")]}
