"""`segue serve`: what it refuses, and its life as a process."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient
from tests.apps.conftest import Segue
from tests.plugins.provenance.conftest import Credentials

from segue.apps.server import app
from segue.apps.server.limits import MOST_RETRY_AFTER
from segue.plugins.provenance.signing import Signer


def test_two_models_of_one_name_are_refused(segue: Segue, tiny: Path) -> None:
    assert segue("serve", tiny, tiny).refused("is a second model named 'speech'; leave one out")


def test_a_missing_package_is_named(segue: Segue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segue.apps.cli.output.find_spec", lambda name: name != "uvicorn" or None)
    assert segue("serve").refused("needs uvicorn; pip install 'segue[serve]'")


@pytest.mark.parametrize("command", ["serve", "web"])
def test_an_address_that_cannot_be_listened_on_is_refused_at_once(
    segue: Segue, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segue.apps.cli.output.find_spec", lambda name: True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = segue(command, "--port", port)
    assert done.refused(f"127.0.0.1:{port}: cannot be listened on (Address already in use); choose")
    # TEST-NET-1 of RFC 5737: an address that no machine has.
    assert segue(command, "--host", "192.0.2.1").refused("192.0.2.1", "cannot be listened on")


def test_limits_are_those_of_the_options(
    segue: Segue, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(app, "create_app", lambda *arguments: seen.append(arguments))
    monkeypatch.setattr("uvicorn.Server.run", lambda self: seen.append(self.config))
    monkeypatch.setenv("SEGUE_API_KEY", "sesame")
    options = ["--max-seconds", 7, "--max-upload-mb", 0.5, "--max-requests", 3, "--batch", 2]
    done = segue("serve", tiny, *options, "--streams", 1, "--timeout", 9, "--grace", 4)
    assert done.code == 0, done.err
    (pipelines, limits, key, signer, _), config = seen
    assert list(pipelines) == ["speech"] and key == "sesame" and signer is None
    assert (limits.seconds, limits.upload_bytes, limits.requests) == (7, 2**19, 3)
    assert (limits.batch, limits.streams, limits.timeout) == (2, 1, 9)
    assert (config.host, config.port, config.timeout_graceful_shutdown) == ("127.0.0.1", 8000, 4)
    assert config.timeout_keep_alive > MOST_RETRY_AFTER


def test_a_server_signs_with_the_files_of_the_option(
    segue: Segue, tiny: Path, credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(app, "create_app", lambda *arguments: seen.append(arguments))
    monkeypatch.setattr("uvicorn.Server.run", lambda self: None)
    monkeypatch.setenv("SEGUE_SIGN", f"{credentials.certificate} {credentials.key}")
    assert segue("serve", tiny).code == 0
    assert isinstance(seen[0][3], Signer)
    done = segue("serve", tiny, "--sign", credentials.root, credentials.key)
    assert done.refused(str(credentials.root), "self-signed")


def test_pages_of_the_origins_allowed_may_read_answers_and_refusals(
    segue: Segue, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("uvicorn.Server.run", lambda self: seen.append(self.config.app))
    origin = "http://localhost:3000"
    assert segue("serve", tiny, "--allow-origin", origin).code == 0
    assert segue("serve", tiny, "--api-key", "sesame", "--allow-origin", "*").code == 0
    (one, every), page = map(TestClient, seen), {"Origin": origin}
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x"}
    assert one.options("/v1/generations", headers=page | asks).status_code == 200
    answer = one.get("/v1/models", headers=page)
    assert answer.headers["access-control-allow-origin"] == origin
    assert "X-Segue-Seed" in answer.headers["access-control-expose-headers"]
    other = one.get("/v1/models", headers={"Origin": "http://example.org"})
    assert "access-control-allow-origin" not in other.headers
    assert other.status_code == 403
    refusal = every.post("/v1/generations", headers=page, json={})
    assert (refusal.status_code, refusal.headers["access-control-allow-origin"]) == (401, "*")
    done = segue("serve", tiny, "--allow-origin", "localhost:3000")
    assert done.refused("--allow-origin: 'localhost:3000' is no origin; write scheme and host")


@pytest.mark.slow
def test_a_process_finishes_what_runs_before_it_ends(tiny: Path) -> None:
    command = [sys.executable, "-m", "segue", "serve", str(tiny), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        log = []
        for line in process.stderr:
            log.append(line)
            if found := re.search(r"running on (http://127.0.0.1:\d+)", line):
                break
        url = found.group(1)  # type: ignore[union-attr]
        with httpx.stream(
            "POST", f"{url}/v1/generations", json={"seconds": 3, "stream": True}
        ) as answer:
            pieces = answer.iter_raw()
            first = next(pieces)
            process.send_signal(signal.SIGTERM)
            data = first + b"".join(pieces)
        assert len(data) == 44 + 3 * 16_000 * 2
        assert process.wait(20) in (0, -signal.SIGTERM)
        assert "Traceback" not in "".join(log) + process.stderr.read()
