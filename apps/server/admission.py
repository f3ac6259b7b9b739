"""Let no more in than the server holds, and count what goes in and out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from segue.apps.server.bodies import RefusedError
from segue.apps.server.limits import Limits, Metrics

DECODERS = 2  # recordings decoded at once: each may take some hundred megabytes for a moment


class Gate:
    """Count the requests that are inside."""

    def __init__(self, most: int, metrics: Metrics, retry_after: Callable[[], int]) -> None:
        self._most, self._inside, self._retry_after = most, 0, retry_after
        metrics.inside.set_function(lambda: self._inside)
        self.decoders = asyncio.Semaphore(DECODERS)

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Hold a place, or raise ``RefusedError`` if there is none."""
        if self._inside >= self._most:
            wait = str(self._retry_after())
            raise RefusedError(429, f"the server is full; come back in {wait} s", Retry_After=wait)
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1


class Admission:
    """ASGI middleware: each POST holds a place until its answer is out, and its body is limited."""

    def __init__(self, app: ASGIApp, gate: Gate, metrics: Metrics, limits: Limits) -> None:
        self._app, self._gate, self._metrics, self._limits = app, gate, metrics, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._serve(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.latency.labels(route).observe(time.monotonic() - started)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        most, got = self._limits.upload_bytes, 0
        too_large = RefusedError(413, f"the body is too large; send at most {most} bytes")

        async def receiving() -> Message:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            if got > most:
                raise too_large
            return message

        try:
            with self._gate.enter():
                stated = dict(scope["headers"]).get(b"content-length", b"")
                if stated.isdigit() and int(stated) > most:
                    raise too_large
                await self._app(scope, receiving, send)
        except RefusedError as refusal:
            await refusal.response()(scope, receive, send)
