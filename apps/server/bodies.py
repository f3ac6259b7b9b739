"""Read requests and write answers: JSON and multipart bodies, recordings, sound formats.

Nothing that a client sends names a file, is unpickled or is run.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
import struct
import tempfile
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import soundfile
from fastapi import Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import from_json
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from segue.apps.server.limits import Limits
from segue.apps.server.work_queue import Order, Piece
from segue.core.audio import Audio, encoded_audio, pcm16
from segue.core.errors import AudioError, PluginError, SegueError
from segue.core.validation import validate
from segue.inference.pipeline import Pipeline
from segue.inference.request import MIN_CHUNK, PromptAudio, chosen_sampling
from segue.plugins.provenance import signing
from segue.sound.reading import read_audio

if TYPE_CHECKING:
    from segue.plugins.provenance.signing import Signer

#: response_format → media type, and libsndfile's names of format and encoding.
FORMATS = {
    "wav": ("audio/wav", "WAV", "PCM_16"),
    "flac": ("audio/flac", "FLAC", "PCM_16"),
    "mp3": ("audio/mpeg", "MP3", "MPEG_LAYER_III"),
    "opus": ("audio/ogg", "OGG", "OPUS"),
    "pcm": ("audio/pcm", "", ""),  # bare little-endian 16-bit samples
}
STREAMED = ("wav", "pcm")
SIGNED = (*(form for form in FORMATS if f".{form}" in signing.FORMATS), "json")
UNKNOWN_SIZE = 0xFFFFFFFF  # of a WAV file whose end is not known yet
EXAMPLE = 'send an object, such as {"seconds": 2}'
TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class RefusedError(Exception):
    """An answer that is an error, in the shape of OpenAI's."""

    def __init__(self, status: int, message: str, param: str | None = None, **headers: str) -> None:
        super().__init__(message)
        kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.status, self.headers = status, {k.replace("_", "-"): v for k, v in headers.items()}
        self.error = {"message": message, "type": kind, "param": param, "code": status}

    @classmethod
    def of(cls, error: SegueError) -> RefusedError:
        """Pass an error of the pipeline on to the client: what it asked for cannot be met."""
        if isinstance(error, PluginError):  # the server's fault
            return cls(500, "the server failed on this request; its log says why")
        return cls(422, str(error), error.place or None)

    def response(self) -> Response:
        # ASCII: a message may repeat what the client sent, even letters that are no valid Unicode.
        text = json.dumps({"error": self.error})
        return Response(text, self.status, self.headers, "application/json")


class Asked(BaseModel):
    """Fields that every request may hold."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str | None = Field(None, description="One of /v1/models; default: the first of them.")
    seed: int | None = Field(
        None, ge=0, lt=2**62, description="The same seed gives the same audio. Default: a new one."
    )
    temperature: float | None = Field(None, ge=0, le=10, description="For all stages.")
    top_k: int | None = Field(None, ge=1, description="For all stages.")
    top_p: float | None = Field(None, gt=0, le=1, description="For all stages.")
    sampling: Annotated[
        dict[str, dict[str, float | list[int] | None]],
        # In a form it is text.
        BeforeValidator(lambda value: from_json(value) if isinstance(value, str) else value),
    ] = Field(
        {}, description="Settings by stage: {'acoustic': {'temperature': 0.7}}. In a form, as JSON."
    )
    response_format: Literal["wav", "flac", "mp3", "opus", "pcm", "json"] = Field(
        "wav", description="json holds a WAV file in base64, the seed and notes."
    )


class GenerationBody(Asked):
    """Audio from nothing."""

    seconds: float = Field(5.0, gt=0, description="Length of the audio to make.")
    chunk_seconds: float | None = Field(
        None, ge=MIN_CHUNK, description="Most new audio of one window, or length of a chunk."
    )
    stream: bool = Field(False, description="Send the new audio while it is made; wav or pcm.")


class ContinuationBody(GenerationBody):
    """The continuation of a recording."""

    audio: bytes = Field(
        description="WAV, FLAC, Ogg, MP3 and others; its end is used. In JSON, as base64."
    )
    prompt_audio: PromptAudio = Field(
        "original", description="The start of the answer; a stream has the new audio only."
    )


class StreamBody(ContinuationBody):
    """The first message of a websocket: a recording to continue, or none."""

    audio: bytes | None = None  # type: ignore[assignment]  # wider than its parent's
    stream: Literal[True] = True
    response_format: Literal["pcm"] = "pcm"


class FillingBody(Asked):
    """A recording, a stretch of which is drawn anew."""

    audio: bytes = Field(description="The whole recording. In JSON, as base64.")
    start: float = Field(ge=0, description="Where the stretch begins, in seconds.")
    end: float = Field(gt=0, description="Where it ends, in seconds.")
    candidates: int = Field(
        8, ge=1, le=16, description="Drawn by each stage that cannot look both ways."
    )


Body = TypeVar("Body", bound=Asked)


def body_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return OpenAPI's description of a body that may be JSON or a form."""
    kinds = {}
    for media, coding in (
        ("application/json", {"contentEncoding": "base64"}),
        ("multipart/form-data", {"format": "binary"}),
    ):
        schema = model.model_json_schema()
        if "audio" in schema["properties"]:
            about = schema["properties"]["audio"]["description"]
            schema["properties"]["audio"] = {"type": "string", "description": about} | coding
        kinds[media] = {"schema": schema}
    return {"requestBody": {"required": True, "content": kinds}}


async def read_body(request: Request, model: type[Body]) -> Body:
    """Return what a request asks for; raise ``RefusedError``, or ``ConfigError`` for a value."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media == "application/json":
        return from_text(await request.body(), model)
    if media != "multipart/form-data":
        raise RefusedError(415, "body: send application/json or multipart/form-data", "body")
    values: dict[str, Any] = {}
    try:
        async with request.form(max_files=1, max_fields=32) as form:
            for name, value in form.multi_items():
                if name in values:
                    raise RefusedError(422, f"{name}: is given twice; leave one out", name)
                values[name] = await value.read() if isinstance(value, UploadFile) else value
    except HTTPException as error:
        message = f"body: the form cannot be read: {error.detail}"
        raise RefusedError(422, message, "body") from error
    if isinstance(values.get("audio"), str):
        raise RefusedError(422, "audio: is text; send it as a file: -F audio=@prompt.wav", "audio")
    return validate(model, values, "")


def from_text(text: bytes | str, model: type[Body]) -> Body:
    """Return what JSON asks for; errors as of ``read_body``."""
    try:
        values = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise RefusedError(422, f"body: is not JSON ({error}); {EXAMPLE}", "body") from error
    if not isinstance(values, dict):
        raise RefusedError(422, f"body: holds no keys and values; {EXAMPLE}", "body")
    if isinstance(values.get("audio"), str):
        try:
            text = "".join(values["audio"].split())  # `base64` and others break lines
            values["audio"] = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            message = f"audio: is not base64 ({error}); encode it, without 'data:...;base64,'"
            raise RefusedError(422, message, "audio") from error
    return validate(model, values, "")


def read_recording(
    data: bytes, pipeline: Pipeline, limits: Limits, last_seconds: float | None = None
) -> Audio:
    """Decode the last seconds of a recording, or raise ``AudioError`` if it is of no use."""
    if not data:
        raise AudioError("audio", "is empty", "send a recording")
    with tempfile.NamedTemporaryFile(prefix="segue-") as copy:
        copy.write(data)
        copy.flush()
        audio = read_audio(
            copy.name,
            last_seconds=last_seconds,
            most_seconds=limits.prompt_seconds,
            place="audio",
        )
    try:
        pipeline.audio.prepared([audio], whole_units=True)
    except AudioError as error:
        error.place = "audio"  # what clients call the prompt
        raise
    return audio


def order_of(asked: Asked, pipeline: Pipeline, limits: Limits) -> Order:
    """Check what was asked for against the pipeline and the server's limits.

    Raises:
        RefusedError: if it is beyond the limits.
        SegueError: if the pipeline cannot do it.
    """
    name, seconds = "seconds", 0.0
    if isinstance(asked, GenerationBody):
        seconds = asked.seconds
    elif isinstance(asked, FillingBody):
        name, seconds = "end", asked.end - asked.start
    if seconds > limits.seconds:
        message = f"{name}: {seconds:g} s is too long; ask for at most {limits.seconds:g}"
        raise RefusedError(422, message, name)
    stream = isinstance(asked, GenerationBody) and asked.stream
    if stream and asked.response_format not in STREAMED:
        message = f"response_format: {asked.response_format} cannot be streamed; use wav or pcm"
        raise RefusedError(422, message, "response_format")
    if stream and not pipeline.codec.can_stream:
        raise RefusedError(
            422, "stream: the codec of this model cannot stream; leave it out", "stream"
        )
    everywhere = asked.model_dump(include={"temperature", "top_k", "top_p"}, exclude_none=True)
    stages = {*asked.sampling, *(stage.name for stage in pipeline.config.stages)}
    sampling = {name: everywhere | asked.sampling.get(name, {}) for name in sorted(stages)}
    chosen_sampling(pipeline.config.stages, sampling)
    order: dict[str, Any] = {
        "pipeline": pipeline,
        "seconds": seconds,
        "seed": secrets.randbelow(2**31) if asked.seed is None else asked.seed,
        "sampling": {name: changes for name, changes in sampling.items() if changes},
        "stream": stream,
    }
    if isinstance(asked, FillingBody):
        recording = read_recording(asked.audio, pipeline, limits)
        gap = asked.start, asked.end
        return Order(**order, prompt=recording, gap=gap, candidates=asked.candidates)
    assert isinstance(asked, GenerationBody)
    order["chunk_seconds"] = asked.chunk_seconds or (1.0 if stream else None)
    if isinstance(asked, ContinuationBody) and asked.audio is not None:
        last = pipeline.config.prompt.max_seconds
        prompt = read_recording(asked.audio, pipeline, limits, last)
        return Order(**order, prompt=prompt, prompt_audio=asked.prompt_audio)
    return Order(**order)


def check_signed(asked: Asked) -> None:
    """Raise ``RefusedError`` for what cannot hold the signature of a server that signs."""
    if isinstance(asked, GenerationBody) and asked.stream:
        problem = "this server signs what it makes, and a stream holds no signature; leave it out"
        raise RefusedError(422, f"stream: {problem}", "stream")
    if asked.response_format not in SIGNED:
        problem = f"this server signs what it makes, and {asked.response_format} holds no signature"
        message = f"response_format: {problem}; use {', '.join(SIGNED)}"
        raise RefusedError(422, message, "response_format")


def encoded(piece: Piece, kind: str, signer: Signer | None = None) -> bytes:
    """Return a row of audio as a file of a format, or raise ``AudioError``.

    Args:
        signer: signs the file; None leaves it as it is.
    """
    media, container, coding = FORMATS[kind]
    row = piece.audio.row(piece.row)
    if kind == "pcm":
        return pcm16(row).astype("<i2").tobytes()
    try:
        data = encoded_audio(row, piece.audio.sample_rate, container, coding)
    except (soundfile.LibsndfileError, ValueError) as error:
        problem = f"{kind} cannot hold audio at {piece.audio.sample_rate} Hz"
        raise AudioError("response_format", problem, "use wav or flac") from error
    if signer is None:
        return data
    return signer.signed(data, media, piece.audio.described(piece.row))


def wav_header(sample_rate: int) -> bytes:
    """Return the header of a mono 16-bit WAV stream of unknown length."""
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", UNKNOWN_SIZE, b"WAVE", b"fmt ", 16, 1, 1),
        *(sample_rate, 2 * sample_rate, 2, 16, b"data", UNKNOWN_SIZE),
    )
