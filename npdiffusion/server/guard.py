"""Who may ask, and how much: what every request passes before anything looks at it.

    Host       one of ours: a page whose name was bound anew to 127.0.0.1 (DNS rebinding) sends its own
    Origin     ours, or none; and no Sec-Fetch-Site of another: pages of others can't post here, nor embed pictures
    key        where there is one: Bearer, or the password of Basic, compared in constant time
    body       at most LARGEST_BODY bytes, within BODY_SECONDS

and every answer says that browsers shall load nothing from elsewhere, guess no types and show it in no frame. No header of
CORS is ever sent.
"""
import asyncio
import base64
import binascii
import hmac
import ipaddress
import logging
import time

from npdiffusion.server import limits

LOG = logging.getLogger("npdiffusion.server")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANYWHERE = ("0.0.0.0", "::", "")      # addresses to listen at that are all addresses of the machine
POLICY = ("default-src 'none'; img-src 'self' data: blob:; connect-src 'self'; form-action 'none'; base-uri 'none'; "
          "frame-ancestors 'none'")
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class Guard:
    """ASGI: lets a request through to `app`, or refuses it.

    host: the address that is listened at      allowed: further names of this machine      key: needed from everyone, or None
    """
    def __init__(self, app, host="127.0.0.1", allowed=(), key=None):
        self.app, self.key = app, key
        self.anywhere = host in ANYWHERE
        self.names = {name.lower() for name in (*LOOPBACK, *allowed, *([] if self.anywhere else [host]))}

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, status = time.monotonic(), 0

        async def answer(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = {name for name, _ in message["headers"]}
                message = {**message, "headers": [*message["headers"], *(
                    (name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in own)]}
            await send(message)
        refusal = self.refuse(scope["method"], scope["path"], headers(scope))
        if refusal:
            await plain(answer, *refusal)
        else:
            await self.app(scope, Body(receive), answer)
        LOG.info("%s %s %d, %.0f ms", scope["method"], scope["path"][:100], status, 1000 * (time.monotonic() - start))

    def refuse(self, method, path, found):
        """Status, text and headers of a refusal, or None if the request may pass"""
        host = found.get("host", "")
        if not self.ours(host):
            return 400, "this server isn't called that: name it with --allow-host", {}
        site, origin = found.get("sec-fetch-site", "none"), found.get("origin")
        linked = method == "GET" and path == "/" and found.get("sec-fetch-mode") == "navigate"
        if site not in ("same-origin", "none") and not linked:
            return 403, "pages of other sites may not ask this server", {}
        if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
            return 403, "pages of other sites may not ask this server", {}
        if self.key is not None and not hmac.compare_digest(secret(found.get("authorization", "")), self.key.encode()):
            return 401, "the key is missing, or another", {"www-authenticate": 'Basic realm="npdiffusion", charset="UTF-8"'}
        if not found.get("content-length", "0").isdigit() or int(found.get("content-length", "0")) > limits.LARGEST_BODY:
            return 413, f"a request may have {limits.LARGEST_BODY} bytes", {}
        return None

    def ours(self, host):
        """Whether a Host header names this machine. An address can't be bound to another machine, as a name can."""
        name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
        return name.lower() in self.names or (self.anywhere and is_address(name))


class Body:
    """ASGI's `receive`, which ends what is too long or too slow."""
    def __init__(self, receive):
        self.receive, self.bytes, self.complete, self.start = receive, 0, False, time.monotonic()

    async def __call__(self):
        if self.complete:                                # what follows is that the client goes
            return await self.receive()
        try:
            left = max(0.1, limits.BODY_SECONDS - (time.monotonic() - self.start))
            message = await asyncio.wait_for(self.receive(), left)
        except asyncio.TimeoutError:
            raise limits.TooMuch(f"a request has to arrive within {limits.BODY_SECONDS} seconds") from None
        self.bytes += len(message.get("body", b""))
        self.complete = not message.get("more_body", False)
        if self.bytes > limits.LARGEST_BODY:
            raise limits.TooMuch(f"a request may have {limits.LARGEST_BODY} bytes")
        return message


def headers(scope):
    """{name in lower case: value}; of those that come twice all, so that none of them passes unseen"""
    found = {}
    for name, value in scope["headers"]:
        name, value = name.decode("latin-1").lower(), value.decode("latin-1")
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def secret(authorization):
    """The key in a header of either kind, as bytes"""
    kind, _, value = authorization.partition(" ")
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return value.strip().encode("latin-1", "replace") if kind.lower() == "bearer" else b""


def is_address(name):
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False


async def plain(send, status, text, more):
    """A short answer in text"""
    body = text.encode()
    found = {"content-type": "text/plain; charset=utf-8", "content-length": str(len(body)), "connection": "close", **more}
    await send({"type": "http.response.start", "status": status,
                "headers": [(name.encode(), value.encode()) for name, value in found.items()]})
    await send({"type": "http.response.body", "body": body})
