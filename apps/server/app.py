"""The routes of the server."""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse, RedirectResponse, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

import segue
from segue.apps.server.admission import Admission, Gate
from segue.apps.server.bodies import (
    FORMATS,
    Asked,
    ContinuationBody,
    FillingBody,
    GenerationBody,
    RefusedError,
    StreamBody,
    body_schema,
    check_signed,
    encoded,
    from_text,
    order_of,
    read_body,
    wav_header,
)
from segue.apps.server.callers import Callers
from segue.apps.server.limits import Limits, Metrics
from segue.apps.server.work_queue import Order, Piece, StoppedError, WorkQueue
from segue.core.errors import SegueError
from segue.inference.pipeline import Pipeline

if TYPE_CHECKING:
    from segue.plugins.provenance.signing import Signer

log = logging.getLogger("segue.server")
T = TypeVar("T")

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "integer"},
            },
        }
    },
}
#: What clients may ask for: the body, and a summary.
TASKS: dict[str, tuple[type[Asked], str]] = {
    "continuations": (ContinuationBody, "Continue a recording"),
    "generations": (GenerationBody, "Generate audio from nothing"),
    "fill": (FillingBody, "Draw a stretch of a recording anew"),
}
MOST_REASON = 123  # bytes of the reason why a websocket is closed (RFC 6455)
CALLER_LEFT = 499  # nobody reads it; it counts in the metrics
CAUSES = {
    401: "The API key is missing or wrong.",
    403: "A page of another origin asks, and there is no API key.",
    404: "There is no such model.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body has another type.",
    422: "A value or the recording cannot be used.",
    429: "The server is full; Retry-After says when to come back.",
    503: "The server is shutting down.",
    504: "The audio was not made in time.",
}
_ANSWERS = {
    "application/json": {"schema": {"type": "object"}},
    **{media: {"schema": {"type": "string", "format": "binary"}} for media, *_ in FORMATS.values()},
}


def _responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    content = {"application/json": {"schema": ERROR}}
    return {status: {"description": CAUSES[status], "content": content} for status in statuses}


def create_app(
    pipelines: Mapping[str, Pipeline],
    limits: Limits | None = None,
    api_key: str | None = None,
    signer: Signer | None = None,
    origins: Sequence[str] = (),
) -> FastAPI:
    """Return the server as an ASGI application.

    Args:
        pipelines: by the name that clients use; the first is the default.
        api_key: asked of clients as ``Authorization: Bearer KEY``; None asks for none.
        signer: signs every answer; formats that hold no signature are refused.
        origins: of other sites whose pages may ask and read answers, or ``*`` for all.
    """
    service = Service(pipelines, limits or Limits(), Callers(api_key, origins), signer)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.queue = WorkQueue(service.limits, service.metrics)
        yield
        await asyncio.to_thread(service.queue.close)

    app = FastAPIOffline(
        title="Segue",
        version=segue.__version__,
        description="Continue and generate audio with token language models.",
        lifespan=lifespan,
        redoc_url=None,  # its logo comes from elsewhere
    )
    app.add_middleware(Admission, gate=service.gate, metrics=service.metrics, limits=service.limits)
    service.callers.let_read(app)  # the middleware added last is the first to be asked
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(SegueError, _segue_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _crash)
    app.include_router(service.public())
    app.include_router(service.v1())
    return app


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return error.response()


async def _segue_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, SegueError)
    refusal = RefusedError.of(error)
    if refusal.status >= 500:
        log.error("a plugin failed", exc_info=error)
    return refusal.response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{error.detail}: /docs lists every request"
    answer = RefusedError(error.status_code, message).response()
    answer.headers.update(error.headers or {})
    return answer


async def _crash(request: Request, error: Exception) -> Response:
    return RefusedError(500, "the server failed on this request; its log says why").response()


class Service:
    """Hold what the routes share."""

    queue: WorkQueue

    def __init__(
        self,
        pipelines: Mapping[str, Pipeline],
        limits: Limits,
        callers: Callers,
        signer: Signer | None,
    ) -> None:
        self.pipelines, self.limits = dict(pipelines), limits
        self.callers, self._signer = callers, signer
        self.metrics = Metrics()
        self.gate = Gate(limits.requests, self.metrics, lambda: self.queue.retry_after())
        self._started = int(time.time())

    # --- routes ---------------------------------------------------------------------------------

    def public(self) -> APIRouter:
        """Return the routes for those who run the server; they ask for no key."""
        router = APIRouter(tags=["operation"])

        @router.get("/", include_in_schema=False)
        async def root() -> RedirectResponse:
            return RedirectResponse("docs")

        @router.get("/healthz", summary="Whether the process works")
        @router.get("/readyz", summary="Whether it takes requests", responses=_responses(503))
        async def ready() -> dict[str, str]:
            if not self.queue.alive:
                raise RefusedError(503, "the server is shutting down")
            return {"status": "ok"}

        @router.get(
            "/metrics",
            summary="Figures for Prometheus",
            response_class=Response,
            responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        )
        async def metrics() -> Response:
            text = generate_latest(self.metrics.registry)
            return Response(text, media_type=CONTENT_TYPE_LATEST)

        return router

    def v1(self) -> APIRouter:
        """Return the routes for clients."""
        router = APIRouter(prefix="/v1")
        self._add_models(router)
        statuses = _responses(401, 403, 404, 408, 413, 415, 422, 429, 503, 504)
        sound = {200: {"description": "Audio", "content": _ANSWERS}, **statuses}
        for prefix, shown in (("", True), ("/audio", False)):  # the latter as OpenAI's paths
            for name, (model, summary) in TASKS.items():
                router.add_api_route(
                    f"{prefix}/{name}",
                    self._route(model),
                    methods=["POST"],
                    name=name,
                    summary=summary,
                    openapi_extra=body_schema(model),
                    dependencies=[Depends(self._check_caller)],
                    response_class=Response,
                    responses=sound,
                    include_in_schema=shown,
                )
        router.add_api_websocket_route("/stream", self._converse)
        return router

    def _route(self, model: type[Asked]) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        async def answer(request: Request) -> Response:
            return await self._answer(request, model)

        return answer

    def _add_models(self, router: APIRouter) -> None:
        keyed = [Depends(self._check_caller)]

        @router.get("/models", dependencies=keyed, responses=_responses(401, 403))
        async def models() -> dict[str, Any]:
            """List the models, in the shape of OpenAI's."""
            return {"object": "list", "data": [self._about(name) for name in self.pipelines]}

        @router.get(
            "/models/{model:path}", dependencies=keyed, responses=_responses(401, 403, 404, 422)
        )
        async def model(model: str) -> dict[str, Any]:
            """Describe one model."""
            self._pipeline(model)
            return self._about(model)

    def _about(self, name: str) -> dict[str, Any]:
        pipeline = self.pipelines[name]
        shape = {"id": name, "object": "model", "created": self._started, "owned_by": "segue"}
        return shape | {
            "description": pipeline.config.description,
            "sample_rate": pipeline.sample_rate,
            "stages": [stage.name for stage in pipeline.config.stages],
            "prompt_seconds": pipeline.config.prompt.max_seconds,
        }

    def _pipeline(self, name: str | None) -> Pipeline:
        if name is None:
            return next(iter(self.pipelines.values()))
        if name not in self.pipelines:
            raise RefusedError(404, f"model: there is no {name!r}; see /v1/models", "model")
        return self.pipelines[name]

    async def _check_caller(
        self,
        request: Request,
        credentials: HTTPAuthorizationCredentials | None = Depends(HTTPBearer(auto_error=False)),  # noqa: B008
    ) -> None:
        self.callers.check(request, credentials.credentials if credentials else "")

    # --- one request ----------------------------------------------------------------------------

    async def _order(self, asked: Asked) -> Order:
        pipeline = self._pipeline(asked.model)
        if self._signer is not None:
            check_signed(asked)
        async with self.gate.decoders:
            return await asyncio.to_thread(order_of, asked, pipeline, self.limits)

    async def _answer(self, request: Request, model: type[Asked]) -> Response:
        asked = await self._uploaded(read_body(request, model))
        order = await self._order(asked)
        headers = {"X-Segue-Seed": str(order.seed)}
        kind = asked.response_format
        if order.stream:
            pieces = self._timed(self.queue.run(order))
            try:
                first = await self._unless_gone(request, anext(pieces))
            except BaseException:
                await pieces.aclose()
                raise
            return PieceStream(first, pieces, kind, headers)
        piece = await self._unless_gone(request, self._in_time(self.queue.result(order)))
        form = "wav" if kind == "json" else kind
        data = await asyncio.to_thread(encoded, piece, form, self._signer)
        if kind == "json":
            return _as_json(piece, data, headers)
        return Response(data, headers=headers, media_type=FORMATS[kind][0])

    async def _uploaded(self, reading: Coroutine[Any, Any, T]) -> T:
        """Wait for a client's body no longer than allowed."""
        try:
            return await asyncio.wait_for(reading, self.limits.upload_timeout)
        except (asyncio.TimeoutError, TimeoutError) as error:
            raise RefusedError(408, "the body did not arrive in time; send it faster") from error

    async def _in_time(self, work: Coroutine[Any, Any, T], until: float | None = None) -> T:
        """Wait for work no longer than allowed."""
        left = self.limits.timeout if until is None else max(0.0, until - time.monotonic())
        try:
            return await asyncio.wait_for(work, left)
        except (asyncio.TimeoutError, TimeoutError) as error:
            message = "the audio was not made in time; ask for fewer seconds, or later"
            raise RefusedError(504, message) from error
        except StoppedError as error:
            raise RefusedError(503, "the server is shutting down") from error

    async def _timed(self, pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[Piece, None]:
        until = time.monotonic() + self.limits.timeout
        async with aclosing(pieces):
            while True:
                try:
                    piece = await self._in_time(anext(pieces), until)
                except StopAsyncIteration:
                    return
                yield piece

    async def _unless_gone(self, request: Request, work: Any) -> Piece:
        """Wait for work, and stop it as soon as the client leaves."""
        async with _first_of(_coroutine(work), _left(request)) as task:
            if task.done():
                return task.result()
            raise RefusedError(CALLER_LEFT, "the client left")

    async def _converse(self, socket: WebSocket) -> None:
        """Stream over a websocket: settings come in as JSON, chunks go out as binary messages."""
        await socket.accept()
        try:
            scheme, _, key = socket.headers.get("authorization", "").partition(" ")
            self.callers.check(socket, key if scheme.lower() == "bearer" else "")
            with self.gate.enter():  # before the message, which may be large
                message = await self._uploaded(socket.receive())
                if message["type"] == "websocket.disconnect":
                    return
                await self._send_stream(socket, message.get("text") or "")
            await socket.close()
        except WebSocketDisconnect:
            return
        except (RefusedError, SegueError) as error:
            refusal = error if isinstance(error, RefusedError) else RefusedError.of(error)
            await socket.send_json({"type": "error", "error": refusal.error})
            reason = str(refusal).encode()[:MOST_REASON].decode(errors="ignore")
            await socket.close({429: 1013, 503: 1012}.get(refusal.status, 1008), reason)

    async def _send_stream(self, socket: WebSocket, text: str) -> None:
        order = await self._order(from_text(text, StreamBody))
        async with _first_of(self._send_parts(socket, order), _closed(socket)) as sender:
            if sender.done():
                sender.result()

    async def _send_parts(self, socket: WebSocket, order: Order) -> None:
        rate, seconds = order.pipeline.sample_rate, 0.0
        start = {"type": "start", "sample_rate": rate, "format": "s16le", "seed": order.seed}
        await socket.send_json(start)
        async with aclosing(self._timed(self.queue.run(order))) as pieces:
            async for piece in pieces:
                await socket.send_bytes(encoded(piece, "pcm"))
                seconds += piece.audio.row().shape[0] / rate
        await socket.send_json({"type": "end", "seconds": round(seconds, 3)})


class PieceStream(StreamingResponse):
    """Audio sent in chunks as it is made; the work stops when the client leaves."""

    def __init__(
        self,
        first: Piece,
        pieces: AsyncGenerator[Piece, None],
        kind: str,
        headers: Mapping[str, str],
    ) -> None:
        self._pieces = pieces
        super().__init__(self._bytes(first, kind), headers=headers, media_type=FORMATS[kind][0])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except RefusedError as refusal:
            # The status is sent already. An answer without an end breaks the connection, so that
            # the client sees that audio is missing.
            log.warning("a stream was cut: %s", refusal)
        finally:
            await self._pieces.aclose()

    async def _bytes(self, first: Piece, kind: str) -> AsyncIterator[bytes]:
        if kind == "wav":
            yield wav_header(first.audio.sample_rate)
        yield encoded(first, "pcm")
        async for piece in self._pieces:
            yield encoded(piece, "pcm")


@asynccontextmanager
async def _first_of(
    work: Coroutine[Any, Any, T], leaving: Coroutine[Any, Any, Any]
) -> AsyncIterator[asyncio.Task[T]]:
    """Yield the work's task once it is done or the client leaves; then stop both."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(leaving)
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        yield task
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _coroutine(work: Any) -> Piece:
    return await work


async def _closed(socket: WebSocket) -> None:
    """Wait until the client closes; what it says meanwhile changes nothing."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _as_json(piece: Piece, data: bytes, headers: dict[str, str]) -> Response:
    audio, made = piece.audio, piece.audio.described(piece.row)
    answer = {
        "audio": base64.b64encode(data).decode(),
        "format": "wav",
        "sample_rate": audio.sample_rate,
        "seconds": int(audio.lengths[piece.row]) / audio.sample_rate,
    }
    answer |= {name: made[name] for name in ("prompt_seconds", "seed", "notes")}
    return JSONResponse(answer, headers=headers)
