"""What a client gets: the pipeline's own audio in each shape, or an error that says what to do."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile
import torch
from tests.apps.server.conftest import Live
from tests.conftest import melody
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect
from websockets.typing import Origin

from segue import Pipeline
from segue.core.audio import encoded_audio
from segue.sound.reading import read_audio

RATE = 16_000


def wav_of(wave: Any, kind: str = "WAV") -> bytes:
    if wave.ndim == 1:
        return encoded_audio(torch.as_tensor(wave), RATE, kind, soundfile.default_subtype(kind))
    file = io.BytesIO()
    soundfile.write(file, wave, RATE, format=kind)
    return file.getvalue()


PROMPT = wav_of(melody(1.3, seed=99).numpy())


def post(live: Live, route: str = "/v1/generations", **asked: Any) -> Any:
    return live.client.post(route, json={"seconds": 0.4, "seed": 3} | asked)


def as_json(audio: bytes) -> str:
    return base64.b64encode(audio).decode()


def samples(data: bytes) -> Any:
    return soundfile.read(io.BytesIO(data), dtype="int16")[0]


# --- audio ------------------------------------------------------------------------------------


def test_a_continuation_is_the_pipelines_own(
    live: Live, served_pipeline: Pipeline, tmp_path: Path
) -> None:
    (tmp_path / "prompt.wav").write_bytes(PROMPT)
    prompt = read_audio(tmp_path / "prompt.wav")
    sampling = {"semantic": {"temperature": 0.5}, "acoustic": {"temperature": 0.5, "top_k": 7}}
    alone = served_pipeline.continue_(prompt, seconds=0.4, seed=3, sampling=sampling)
    wanted = wav_of(alone.row().numpy())
    chosen = {"temperature": 0.5, "sampling": {"acoustic": {"top_k": 7}}}
    by_json = post(live, "/v1/continuations", audio=as_json(PROMPT), **chosen)
    assert by_json.content == wanted
    assert by_json.headers["content-type"] == "audio/wav"
    form = {
        "seconds": "0.4",
        "seed": "3",
        "temperature": ".5",
        "sampling": '{"acoustic":{"top_k":7}}',
    }
    for route in ("/v1/continuations", "/v1/audio/continuations"):
        by_form = live.client.post(route, data=form, files={"audio": ("p.wav", PROMPT)})
        assert by_form.content == wanted
    lines = base64.encodebytes(PROMPT).decode()  # broken as `base64 prompt.wav` breaks them
    answer = post(live, "/v1/continuations", audio=lines, response_format="json", **chosen)
    assert answer.headers["x-segue-seed"] == "3"
    found = answer.json()
    assert base64.b64decode(found.pop("audio")) == wanted
    assert found == {
        "format": "wav",
        "sample_rate": RATE,
        "seconds": 1.68,  # whole frames of every stream
        "prompt_seconds": 1.28,
        "seed": 3,
        "notes": [],
    }


def test_what_the_answer_starts_with(live: Live) -> None:
    answer = post(live, "/v1/continuations", audio=as_json(PROMPT), prompt_audio="none")
    assert len(samples(answer.content)) == 0.4 * RATE


def test_without_a_seed_one_is_drawn_and_reported(live: Live) -> None:
    first, second = (post(live, seed=None) for _ in range(2))
    assert first.content != second.content
    again = post(live, seed=int(first.headers["x-segue-seed"]))
    assert again.content == first.content


@pytest.mark.parametrize(
    ("kind", "media"),
    [("flac", "audio/flac"), ("mp3", "audio/mpeg"), ("opus", "audio/ogg"), ("pcm", "audio/pcm")],
)
def test_formats(live: Live, served_pipeline: Pipeline, kind: str, media: str) -> None:
    wanted = samples(wav_of(served_pipeline.generate(0.4, seed=3).row().numpy()))
    answer = post(live, response_format=kind)
    assert answer.headers["content-type"] == media
    data = answer.content
    found = numpy.frombuffer(data, "<i2") if kind == "pcm" else samples(data)
    if kind in ("flac", "pcm"):  # libsndfile rounds in FLAC, and down in WAV
        numpy.testing.assert_allclose(found, wanted, atol=1 if kind == "flac" else 0)
    else:  # lossy, and some pad
        assert abs(len(found) - len(wanted)) < 0.2 * RATE


def test_a_stream_is_the_continuation_with_the_same_chunks(
    live: Live, served_pipeline: Pipeline
) -> None:
    chunks = served_pipeline.stream(
        samples(PROMPT).astype("float32") / 32768, RATE, seconds=0.6, seed=3, chunk_seconds=0.2
    )
    wanted = samples(wav_of(numpy.concatenate([chunk.row().numpy() for chunk in chunks])))
    assert len(wanted) == 0.6 * RATE
    asked = {"audio": as_json(PROMPT), "seconds": 0.6, "chunk_seconds": 0.2, "stream": True}
    with live.client.stream(
        "POST", "/v1/continuations", json={"seed": 3, "response_format": "wav"} | asked
    ) as answer:
        assert "content-length" not in answer.headers
        pieces = list(answer.iter_raw())
    assert len(pieces) > 2
    data = b"".join(pieces)
    assert data[:4] == b"RIFF" and soundfile.info(io.BytesIO(data)).samplerate == RATE
    numpy.testing.assert_array_equal(numpy.frombuffer(data[44:], "<i2"), wanted)
    with connect(f"ws://127.0.0.1:{live.port}/v1/stream") as socket:
        socket.send(json.dumps({"seed": 3} | asked))
        assert json.loads(socket.recv()) == {
            "type": "start",
            "sample_rate": RATE,
            "format": "s16le",
            "seed": 3,
        }
        messages = list(socket)
    assert json.loads(messages[-1]) == {"type": "end", "seconds": 0.6}
    assert b"".join(messages[:-1]) == data[44:]  # type: ignore[arg-type]


def test_a_stretch_is_filled_as_the_pipeline_does(
    live: Live, served_pipeline: Pipeline, tmp_path: Path
) -> None:
    recording = wav_of(melody(2.4, seed=5).numpy())
    (tmp_path / "whole.wav").write_bytes(recording)
    options = {"seed": 3, "candidates": 2}
    alone = served_pipeline.fill(tmp_path / "whole.wav", 0, 0.8, 1.2, **options)
    form = {"start": "0.8", "end": "1.2", "seed": "3", "candidates": "2"}
    answer = live.client.post("/v1/fill", data=form, files={"audio": recording})
    assert answer.content == wav_of(alone.row().numpy())
    for wrong, place in (({"end": "9"}, "end"), ({"start": "1.3"}, ""), ({"candidates": "99"}, "")):
        answer = live.client.post("/v1/fill", data=form | wrong, files={"audio": recording})
        assert answer.status_code == 422 and place in answer.json()["error"]["message"]


# --- models -----------------------------------------------------------------------------------


def test_models_have_the_shape_of_openais(live: Live) -> None:
    listed = live.client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [each["id"] for each in listed["data"]] == ["speech", "second"]
    assert listed["data"][0].items() >= {"object": "model", "owned_by": "segue"}.items()
    assert live.client.get("/v1/models/second").json() == listed["data"][1]
    assert post(live, model="second").content == post(live).content
    assert post(live, model="third").status_code == 404


def test_the_page_that_describes_requests_loads_nothing_from_elsewhere(live: Live) -> None:
    page = live.client.get("/", follow_redirects=True)
    assert page.status_code == 200 and page.url.path == "/docs"
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(loaded) == 3  # script, style, icon
    for address in loaded:
        assert address.startswith("/") and live.client.get(address).status_code == 200
    assert live.client.get("/redoc").status_code == 404


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "asked", "message"),
    [
        (422, {"sed": 3}, "sed: unknown key; did you mean 'seed'?"),
        (422, {"seconds": 0}, "seconds: 0 is out of range"),
        (422, {"seconds": 1001}, "seconds: 1001 s is too long; ask for at most 1000"),
        (422, {"seed": -1}, "seed: -1 is out of range"),
        (422, {"sampling": {"fine": {"top_k": 3}}}, "sampling.fine: is not a stage"),
        (422, {"sampling": {"acoustic": {"top_q": 3}}}, "sampling.acoustic.top_q: unknown key"),
        (422, {"sampling": {"acoustic": {"guidance": 3}}}, "guidance"),
        (422, {"stream": True, "response_format": "flac"}, "flac cannot be streamed"),
        (404, {"model": "\ud800"}, "there is no"),
        (404, {"model": "/etc/passwd"}, "there is no '/etc/passwd'; see /v1/models"),
    ],
)
def test_wrong_values_are_refused(
    live: Live, status: int, asked: dict[str, Any], message: str
) -> None:
    text = json.dumps({"seconds": 0.4} | asked)
    answer = live.client.post(
        "/v1/generations", content=text, headers={"content-type": "application/json"}
    )
    error = answer.json()["error"]
    if "\\ud800" in text and answer.status_code == 422:  # no valid Unicode
        assert "not JSON" in error["message"]
        return
    assert answer.status_code == status == error["code"] and message in error["message"]
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")


def bomb(seconds: float) -> bytes:
    return wav_of(numpy.zeros((round(seconds * RATE), 2)), "FLAC")


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (b"no sound", "audio: cannot be read as audio (Format not recognised)"),
        (b"", "audio: is empty"),
        (wav_of(numpy.zeros(0)), "audio: holds no sample"),
        (wav_of(numpy.zeros(99)), "audio: lasts 0.006 s; give at least 0.5 s"),
        (bomb(121), "audio: lasts more than 120.0 s; give at most 120.0 s"),
    ],
)
def test_wrong_recordings_are_refused(live: Live, audio: bytes, message: str) -> None:
    answers = [
        live.client.post("/v1/continuations", files={"audio": audio}),
        post(live, "/v1/continuations", audio=as_json(audio)),
    ]
    for answer in answers:
        assert answer.status_code == 422 and message in answer.json()["error"]["message"]
        assert answer.json()["error"]["param"] == "audio"
        assert not re.search(r"/tmp|segue-\w{8}", answer.text)


def post_bytes(live: Live, body: bytes) -> Any:
    kind = {"content-type": "application/json"}
    return live.client.post("/v1/continuations", content=body, headers=kind)


def test_wrong_bodies_are_refused(live: Live) -> None:
    def status(content: bytes, kind: str, route: str = "/v1/continuations") -> int:
        answer = live.client.post(route, content=content, headers={"content-type": kind})
        assert answer.json()["error"]["code"] == answer.status_code
        return answer.status_code

    assert status(b"{}", "text/plain") == 415
    assert status(b"{", "application/json") == 422
    for body in (b"[]", b"null", b'"text"', b"3", b""):
        answer = post_bytes(live, body)
        assert answer.status_code == 422 and answer.json()["error"]["param"] == "body"
        assert answer.json()["error"]["message"].startswith("body: ")
    page = post_bytes(live, b'{"audio": "data:audio/wav;base64,AAAA"}').json()["error"]["message"]
    assert page.startswith("audio: is not base64") and "without 'data:...;base64,'" in page
    assert status(b'{"seconds": NaN}', "application/json", "/v1/generations") == 422
    assert status(b"[" * 100_000, "application/json") == 422
    assert status(b"x", "multipart/form-data") == 422
    assert status(b"x", "multipart/form-data; boundary=a") == 422
    text = live.client.post("/v1/continuations", data={"audio": "a"}, files={"x": b""})
    assert text.status_code == 422 and "as a file" in text.json()["error"]["message"]
    twice = live.client.post(
        "/v1/continuations", data={"seconds": ["1", "2"]}, files={"audio": PROMPT}
    )
    assert twice.status_code == 422 and "given twice" in twice.json()["error"]["message"]
    assert live.client.get("/v1/continuations").status_code == 405
    nowhere = live.client.get("/nowhere").json()["error"]
    assert (nowhere["type"], nowhere["message"]) == (
        "not_found_error",
        "Not Found: /docs lists every request",
    )


def test_websockets_are_refused_in_the_same_words(live: Live) -> None:
    with connect(f"ws://127.0.0.1:{live.port}/v1/stream") as socket:
        socket.send('{"sed": 3}')
        assert "did you mean 'seed'?" in json.loads(socket.recv())["error"]["message"]
        with pytest.raises(ConnectionClosedError, match=r"policy violation\) sed: unknown key"):
            socket.recv()
        assert socket.close_code == 1008
    with connect(f"ws://127.0.0.1:{live.port}/v1/stream") as socket:
        socket.send(b"no text")
        assert "body: is not JSON" in json.loads(socket.recv())["error"]["message"]


FUZZED = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance,response_headers_conformance,unsupported_method"
)


def test_pages_of_other_sites_are_refused_by_a_server_without_a_key(live: Live) -> None:
    own, other = f"http://127.0.0.1:{live.port}", "http://example.org"
    fix = f"pages of {other} may not ask: start with --allow-origin {other}"
    url = f"ws://127.0.0.1:{live.port}/v1/stream"
    with connect(url, origin=Origin(other)) as socket:
        assert json.loads(socket.recv())["error"]["message"] == fix
        with pytest.raises(ConnectionClosedError):
            socket.recv()
    with connect(url, origin=Origin(own)) as socket:
        socket.send(json.dumps({"seconds": 0.5}))
        assert json.loads(socket.recv())["type"] == "start"
    refusal = live.client.post("/v1/generations", headers={"Origin": other}, json={})
    assert (refusal.status_code, refusal.json()["error"]["message"]) == (403, fix)
    assert live.client.get("/v1/models", headers={"Origin": own}).status_code == 200
    files = live.client.get("/v1/models", headers={"Origin": "null"}).json()["error"]["message"]
    assert files.endswith("start with --allow-origin '*'")


@pytest.mark.slow
def test_no_made_up_request_breaks_the_server(serve: Callable[..., Live], tmp_path: Path) -> None:
    """Fuzz all routes: every answer is one that the OpenAPI page describes, and none is a 500."""
    server = serve(seconds=0.1)
    options = ["--checks", FUZZED, "--max-examples", "60", "--seed", "1", "--phases", "fuzzing"]
    command = [sys.executable, "-m", "schemathesis.cli", "run", *options]
    done = subprocess.run(
        [*command, f"{server.client.base_url}/openapi.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for status in ("200", "422"):
        assert server.figure("segue_requests_total", route="/v1/generations", status=status) > 0
    assert server.figure("segue_requests_total", route="/v1/continuations", status="500") == 0
    assert server.figure("segue_requests_inside") == 0
