"""How the server holds its limits: batches, back-pressure, clients that leave, and its end."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import torch
from tests.apps.server.conftest import Live
from tests.apps.server.test_requests import PROMPT, as_json, post, wav_of
from tests.conftest import melody
from websockets.sync.client import connect

from segue import Pipeline
from segue.apps.server.app import PieceStream
from segue.apps.server.bodies import RefusedError
from segue.apps.server.work_queue import Piece
from segue.inference.request import GeneratedAudio, Request

Serve = Callable[..., Live]
LONG = 400.0  # seconds of audio that a tiny pipeline needs long for


# --- batches ----------------------------------------------------------------------------------


def test_concurrent_requests_are_one_batch_and_equal_what_each_gets_alone(serve: Serve) -> None:
    server = serve(batch=4, gather_seconds=1.0)
    prompts = [wav_of(melody(length, seed=n).numpy()) for n, length in enumerate((0.7, 1.9, 1.2))]

    def ask(number: int) -> bytes:
        if number == 3:  # it has another task, so it is no part of the batch
            return post(server, seed=9).content
        audio = as_json(prompts[number])
        return post(server, "/v1/continuations", audio=audio, seed=10 * number).content

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(ask, range(4)))
    assert server.figure("segue_batch_size_bucket", le="2.0") == 1  # that of the generation
    assert server.figure("segue_batch_size_bucket", le="4.0") == 2
    assert server.figure("segue_batch_size_sum") == 4
    quick = serve(gather_seconds=0.0)
    server.client, server.port = quick.client, quick.port
    assert [ask(number) for number in range(4)] == together
    assert quick.figure("segue_batch_size_bucket", le="1.0") == 4


def test_a_request_that_fails_takes_no_other_with_it(
    serve: Serve, served_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = served_pipeline.run

    def fail(request: Request, *more: Any) -> Any:
        if 13 in request.seeds:
            raise RuntimeError("the secret of the server")
        return whole(request, *more)

    monkeypatch.setattr(served_pipeline, "run", fail)
    server = serve(batch=3, gather_seconds=1.0)
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda seed: post(server, seed=seed), (12, 13, 14)))
    assert [answer.status_code for answer in answers] == [200, 500, 200]
    assert answers[1].json()["error"]["type"] == "server_error"
    assert "secret" not in answers[1].text
    assert answers[0].content != answers[2].content


# --- limits -----------------------------------------------------------------------------------


@contextmanager
def long_request(server: Live) -> Iterator[None]:
    """Ask for much audio, wait until it is being made, and leave at the end."""
    body = json.dumps({"seconds": LONG}).encode()
    head = "POST /v1/generations HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        server.wait_for(lambda: server.figure("segue_jobs_running") == 1)
        yield


def test_a_full_server_says_when_to_come_back_and_loses_nothing(serve: Serve) -> None:
    server = serve(requests=2, batch=1)
    statuses = []

    def ask(seed: int) -> bytes:
        while True:
            answer = post(server, seed=seed)
            statuses.append(answer.status_code)
            if answer.status_code == 200:
                return answer.content
            assert answer.status_code == 429
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            time.sleep(0.05)

    with ThreadPoolExecutor(5) as pool:
        found = list(pool.map(ask, range(5)))
    assert 429 in statuses and statuses.count(200) == 5 and len(set(found)) == 5
    assert server.figure("segue_requests_inside") == 0
    refused = statuses.count(429)
    assert server.figure("segue_requests_total", route="other", status="429") == refused


def test_late_answers_and_bodies_are_given_up(serve: Serve) -> None:
    server = serve(timeout=0.2, upload_timeout=0.2)
    answer = post(server, seconds=LONG)
    assert answer.status_code == 504 and "ask for fewer seconds" in answer.text
    server.wait_for(lambda: server.figure("segue_jobs_stopped_total") == 1)
    with socket.create_connection(("127.0.0.1", server.port)) as slow:
        head = b"POST /v1/generations HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
        slow.sendall(head + b"content-length: 9\r\n\r\n{")
        assert slow.recv(64).startswith(b"HTTP/1.1 408")


def test_a_late_stream_is_left_without_an_end(caplog: pytest.LogCaptureFixture) -> None:
    wave, none = torch.zeros(1, 9), torch.zeros(1, dtype=torch.long)
    first = Piece(GeneratedAudio(wave, none + 9, 16_000, none, {}, [()]), 0)
    sent: list[Any] = []

    async def late() -> AsyncGenerator[Piece, None]:
        raise RefusedError(504, "too late")
        yield first

    async def send(message: Any) -> None:
        sent.append(message)

    answer = PieceStream(first, late(), "pcm", {})
    asyncio.run(answer({"type": "http", "method": "POST"}, asyncio.Event().wait, send))
    assert sent[0]["status"] == 200 and len(sent[1]["body"]) == 18
    assert all(message.get("more_body", True) for message in sent)  # it does not look whole
    assert [record.getMessage() for record in caplog.records] == ["a stream was cut: too late"]


def test_a_websocket_holds_a_place_before_its_first_message(serve: Serve) -> None:
    server = serve(requests=1)
    with connect(f"ws://127.0.0.1:{server.port}/v1/stream"):
        server.wait_for(lambda: server.figure("segue_requests_inside") == 1)
        assert post(server).status_code == 429
        with connect(f"ws://127.0.0.1:{server.port}/v1/stream") as second:
            assert json.loads(second.recv())["error"]["type"] == "rate_limit_error"
    server.wait_for(lambda: server.figure("segue_requests_inside") == 0)


def test_large_bodies_are_refused_before_they_are_read(serve: Serve) -> None:
    server = serve(upload_bytes=1000)
    url, kind = "/v1/continuations", {"content-type": "application/json"}
    stated = server.client.post(url, content=b" " * 1001, headers=kind)
    assert stated.status_code == 413 and "at most 1000 bytes" in stated.text
    with socket.create_connection(("127.0.0.1", server.port)) as endless:
        head = b"POST /v1/continuations HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
        endless.sendall(head + b"transfer-encoding: chunked\r\n\r\n")
        endless.sendall((b"200\r\n" + b" " * 0x200 + b"\r\n") * 2)
        assert endless.recv(64).startswith(b"HTTP/1.1 413")


def test_the_key_is_asked_of_clients_only(serve: Serve) -> None:
    server = serve(key="sesame")
    for url in ("/healthz", "/readyz", "/metrics"):
        assert server.client.get(url).status_code == 200
    for headers in ({}, {"authorization": "Bearer open"}, {"authorization": "Basic sesame"}):
        refused = server.client.get("/v1/models", headers=headers)
        assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
        assert server.client.post("/v1/generations", headers=headers).status_code == 401
        with connect(f"ws://127.0.0.1:{server.port}/v1/stream", additional_headers=headers) as ws:
            assert json.loads(ws.recv())["error"]["type"] == "authentication_error"
    server.client.headers["authorization"] = "Bearer sesame"
    assert server.client.get("/v1/models").status_code == 200


# --- clients that leave -----------------------------------------------------------------------


def idle(server: Live) -> bool:
    return server.figure("segue_jobs_running") == server.figure("segue_requests_inside") == 0


@pytest.mark.parametrize("stream", [False, True])
def test_work_stops_when_the_client_leaves(live: Live, stream: bool) -> None:
    before = live.figure("segue_jobs_stopped_total")
    with httpx.Client(timeout=0.3) as client, pytest.raises(httpx.ReadTimeout):
        asked = {"seconds": 2 * LONG, "stream": stream, "chunk_seconds": 2 * LONG}
        client.post(f"{live.client.base_url}/v1/generations", json=asked)
    live.wait_for(lambda: idle(live) and live.figure("segue_jobs_stopped_total") == before + 1, 3)


def test_a_stream_stops_between_chunks_and_a_websocket_too(live: Live) -> None:
    before = live.figure("segue_jobs_stopped_total")
    asked = {"seconds": LONG, "stream": True, "chunk_seconds": 0.1}
    with live.client.stream("POST", "/v1/generations", json=asked) as answer:
        next(answer.iter_raw())
    with connect(f"ws://127.0.0.1:{live.port}/v1/stream") as ws:
        ws.send(json.dumps(asked))
        ws.recv()
        assert ws.recv(decode=False)
    live.wait_for(lambda: idle(live) and live.figure("segue_jobs_stopped_total") == before + 2, 3)


def test_what_a_websocket_says_during_a_stream_changes_nothing(live: Live) -> None:
    with connect(f"ws://127.0.0.1:{live.port}/v1/stream") as ws:
        ws.send(json.dumps({"seconds": 1, "chunk_seconds": 0.1}))
        ws.send("still here")
        heard = list(ws)
    texts = [json.loads(message)["type"] for message in heard if isinstance(message, str)]
    assert texts == ["start", "end"] and len(heard) > 2


def test_who_leaves_the_queue_frees_it(serve: Serve) -> None:
    server = serve(batch=1)
    with long_request(server):
        with httpx.Client(timeout=0.3) as client, pytest.raises(httpx.ReadTimeout):
            client.post(f"{server.client.base_url}/v1/generations", json={"seconds": 0.4})
        server.wait_for(lambda: server.figure("segue_jobs_stopped_total") == 1)
        assert server.figure("segue_jobs_waiting") == 0
        assert server.figure("segue_jobs_running") == 1


def test_streams_and_batches_take_turns(serve: Serve) -> None:
    server = serve()
    with long_request(server):
        asked = {"audio": as_json(PROMPT), "seconds": 0.4, "stream": True, "chunk_seconds": 0.2}
        assert post(server, "/v1/continuations", **asked).status_code == 200
        server.wait_for(lambda: server.figure("segue_jobs_running") == 1)  # the long one


# --- the end ----------------------------------------------------------------------------------


def test_what_runs_is_finished_before_the_server_ends(serve: Serve) -> None:
    server = serve()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, server, seconds=2.0)
        server.wait_for(lambda: server.figure("segue_jobs_running") == 1)
        server.server.should_exit = True
        assert answer.result().status_code == 200

    def refuses() -> bool:  # the server notices its end within a tenth of a second
        try:
            httpx.get(f"{server.client.base_url}/readyz")
        except httpx.ConnectError:
            return True
        return False

    server.wait_for(refuses)
