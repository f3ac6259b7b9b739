"""A server that signs: every answer holds a manifest, and what could hold none is refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.apps.conftest import credentials
from tests.apps.server.conftest import Live
from tests.apps.server.test_requests import PROMPT, as_json, post, samples
from tests.plugins.provenance.conftest import Credentials
from websockets.sync.client import connect

from segue.plugins.provenance.signing import Signature, Signer, read_signature

__all__ = ["credentials"]  # a fixture


def signature(data: bytes, path: Path) -> Signature:
    path.write_bytes(data)
    found = read_signature(path)
    assert found is not None and found.state == "intact"
    return found


def test_every_answer_of_a_server_that_signs_is_signed(
    serve: Callable[..., Live], live: Live, credentials: Credentials, tmp_path: Path
) -> None:
    signing = serve(signer=Signer(credentials.certificate, credentials.key))
    kinds = ("wav", "flac", "mp3", "json")
    with ThreadPoolExecutor() as clients:
        asked = [
            clients.submit(post, signing, response_format=kind, seed=seed)
            for seed, kind in enumerate(kinds)
        ]
    for seed, (kind, sent) in enumerate(zip(kinds, asked, strict=True)):
        answer, suffix = sent.result(), "wav" if kind == "json" else kind
        assert answer.status_code == 200, answer.text
        data = base64.b64decode(answer.json()["audio"]) if kind == "json" else answer.content
        found = signature(data, tmp_path / f"{kind}.{suffix}")
        assert found.signer == "Test studio, Signer"
        assert found.said is not None
        assert (found.said["task"], found.said["seed"]) == ("generate", seed)
    answer = post(signing, "/v1/continuations", audio=as_json(PROMPT))
    found = signature(answer.content, tmp_path / "continued.wav")
    assert found.said is not None
    assert found.said["prompt_seconds"] == pytest.approx(1.3, abs=0.05)
    unsigned = post(live, "/v1/continuations", audio=as_json(PROMPT)).content
    assert samples(answer.content).tolist() == samples(unsigned).tolist()


@pytest.mark.parametrize(
    "asked, place",
    [
        ({"response_format": "opus"}, "response_format"),
        ({"response_format": "pcm"}, "response_format"),
        ({"stream": True}, "stream"),
    ],
)
def test_what_holds_no_signature_is_refused(
    serve: Callable[..., Live], credentials: Credentials, asked: dict[str, object], place: str
) -> None:
    signing = serve(signer=Signer(credentials.certificate, credentials.key))
    answer = post(signing, **asked)
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == place
    assert "holds no signature" in answer.json()["error"]["message"]
    if place == "stream":
        with connect(f"ws://127.0.0.1:{signing.port}/v1/stream") as socket:
            socket.send(json.dumps({"seconds": 0.4}))
            assert json.loads(socket.recv())["error"]["param"] == "stream"
