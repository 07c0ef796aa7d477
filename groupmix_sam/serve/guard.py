"""What stands before every request: who may ask, how often, how much, and for how long."""

import asyncio
import hmac
import math
from collections import OrderedDict
from time import monotonic
from urllib.parse import urlsplit

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .engine import Limits
from .metrics import Metrics

__all__ = ["LOCAL", "OPEN", "UPLOAD", "Guard", "RateLimiter", "refusal"]

LOCAL = ("127.0.0.1", "localhost", "::1")
# Without a token, as they say nothing of images: a browser cannot send one when it opens a page.
OPEN = ("/docs", "/docs/oauth2-redirect", "/health", "/openapi.json")
OPEN_FOLDER = "/static-offline-docs/"
# The one path whose bodies are images; the others take JSON.
UPLOAD = "/images"
JSON_BYTES = 1_000_000
# Addresses whose rates are kept.
CLIENTS = 10_000


def refusal(status: int, detail: str, **headers: str) -> JSONResponse:
    """Return the answer to a request that is refused; half a surrogate pair, which UTF-8 lacks, is written as an escape."""
    detail = detail.encode("utf-8", "backslashreplace").decode()
    return JSONResponse({"detail": detail}, status, {name.replace("_", "-"): value for name, value in headers.items()})


class RateLimiter:
    """A token bucket for each address, of one second's requests."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left, and when

    def wait(self, address: str, now: float) -> float:
        """Return 0 and count a request, or return the seconds until there may be one."""
        left, then = self._buckets.pop(address, (self.rate, now))
        left = min(self.rate, left + (now - then) * self.rate)
        seconds = 0.0 if left >= 1 else (1 - left) / self.rate
        self._buckets[address] = (left if seconds else left - 1, now)
        if len(self._buckets) > CLIENTS:
            self._buckets.popitem(last=False)
        return seconds


class Guard:
    """ASGI middleware that refuses what a server's limits do not allow, and counts all.

    Without a token a server is for its own machine: then requests that name another host, or that another site's page sends,
    are refused, as a browser would carry them here from anywhere.

    Args:
        app: What it guards.
        limits: Size, rate and time.
        token: What clients send as `Authorization: Bearer TOKEN`.
        host: The address that the server listens at.
        metrics: Where requests are counted.
    """

    def __init__(self, app: ASGIApp, limits: Limits, token: str | None, host: str, metrics: Metrics) -> None:
        self.app = app
        self.limits = limits
        self.hosts = {*LOCAL, host}
        self.metrics = metrics
        self._token = None if token is None else token.encode()
        self._rates = RateLimiter(limits.rate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = monotonic(), 500

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refused = self._refuse(Request(scope))
            if refused is not None:
                await refused(scope, receive, seen)
            else:
                await self._run(scope, receive, seen)
        finally:
            method = scope["method"] if scope["method"] in ("DELETE", "GET", "HEAD", "POST") else "other"
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(method, route, status).inc()
            self.metrics.seconds.labels(method, route).observe(monotonic() - start)

    def _refuse(self, request: Request) -> JSONResponse | None:
        path = request.scope["path"]  # request.url is made of the header Host, too
        client = request.client.host if request.client else ""
        seconds = 0.0 if path == "/health" else self._rates.wait(client, monotonic())
        if seconds:
            again = str(math.ceil(seconds))
            return refusal(429, f"more than {self.limits.rate:g} requests a second: come back in {again} s.", retry_after=again)
        refused = self._refuse_foreign(request) if self._token is None else self._refuse_unknown(request, self._token)
        if refused is not None:
            return refused
        size = request.headers.get("content-length", "0")
        if not size.isdecimal() or int(size[:20]) > self._most(path):
            # The rest of the body is not read, so that the connection cannot go on.
            return refusal(413, self._too_long(path), connection="close")
        return None

    @staticmethod
    def _refuse_unknown(request: Request, token: bytes) -> JSONResponse | None:
        path = request.scope["path"]
        kind, _, given = request.headers.get("authorization", "").encode().partition(b" ")
        known = kind.lower() == b"bearer" and hmac.compare_digest(given, token)
        if known or path in OPEN or path.startswith(OPEN_FOLDER):
            return None
        text = "the token is missing or wrong: send Authorization: Bearer TOKEN."
        return refusal(401, text, www_authenticate="Bearer")

    def _refuse_foreign(self, request: Request) -> JSONResponse | None:
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            name = None
        if name not in self.hosts:
            return refusal(403, f"this server is for its own machine, not for the host {host!a:.200}: see --host and --token.")
        if origin is not None and origin.partition("://")[2] != host:
            return refusal(403, "another site's page may not use this server: see --token.")
        return None

    def _most(self, path: str) -> int:
        return self.limits.max_bytes if path == UPLOAD else JSON_BYTES

    def _too_long(self, path: str) -> str:
        return f"the body is longer than {self._most(path)} bytes: send less."

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app on a body that is counted, and for a limited time."""
        left, whole, answered = self._most(scope["path"]), False, False

        async def counted() -> Message:
            nonlocal left, whole
            message = await receive()
            left -= len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if left < 0:
                raise HTTPException(413, self._too_long(scope["path"]), {"connection": "close"})
            return message

        async def noted(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await asyncio.wait_for(self.app(scope, counted, noted), self.limits.timeout)
        except asyncio.TimeoutError:  # noqa: UP041  Python 3.10 has two
            if answered:  # a client that does not read: the server closes its connection
                return
            late = f"the request took longer than {self.limits.timeout:g} s"
            if whole:
                await refusal(503, f"{late}: come back later.", retry_after="5")(scope, receive, send)
            else:
                await refusal(408, f"{late} to arrive: send it faster.", connection="close")(scope, receive, send)
