"""The example for Ray Serve, on this machine."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from inspect import signature
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.apps.server.test_requests import PROMPT, RATE, as_json, samples
from websockets.sync.client import connect

from segue import Pipeline

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(tiny_pipelines: dict[str, Path]) -> Iterator[str]:
    """Two replicas of the example, each with two tiny models."""
    ray: Any = pytest.importorskip("ray", reason="pip install 'ray[serve]'")
    serve = pytest.importorskip("ray.serve", reason="pip install 'ray[serve]'")
    from examples.ray_serve import Settings, application

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        # Ray's usual patience is too short for a busy machine.
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "120")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("SEGUE_API_KEY", "sesame")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        serve.start(http_options={"port": port})
        # What `serve run` reads words such as replicas=2 into.
        assert signature(application).parameters["settings"].annotation is Settings
        models = ",".join(str(tiny_pipelines[name]) for name in ("speech", "piano"))
        serve.run(application(Settings(models=models, replicas=2, cpus=0.1)))
        yield f"127.0.0.1:{port}"
        serve.shutdown()
        ray.shutdown()


def test_replicas_answer_as_one_server_does(address: str, tiny_pipelines: dict[str, Path]) -> None:
    headers = {"Authorization": "Bearer sesame"}
    asked: dict[str, Any] = {"audio": as_json(PROMPT), "seconds": 0.4}
    with httpx.Client(base_url=f"http://{address}", headers=headers, timeout=120) as client:
        assert client.get("/readyz").json() == {"status": "ok"}
        names = [model["id"] for model in client.get("/v1/models").json()["data"]]
        assert names == ["speech", "piano"]
        with ThreadPoolExecutor(16) as clients:
            seeds = [index % 4 for index in range(16)]
            ask = lambda seed: client.post("/v1/continuations", json=asked | {"seed": seed})  # noqa: E731
            answers = list(clients.map(ask, seeds))
        assert [answer.status_code for answer in answers] == [200] * 16
        pipeline = Pipeline.from_pretrained(tiny_pipelines["speech"])
        for seed, answer in zip(seeds, answers, strict=True):
            assert answer.headers["x-segue-seed"] == str(seed)
            assert answer.content == answers[seed].content
        prompt = samples(PROMPT)
        alone = pipeline.continue_(prompt, RATE, seconds=0.4, seed=3)
        assert len(samples(answers[3].content)) == alone.row().shape[0]
        stream = {"seconds": 1, "stream": True, "chunk_seconds": 0.5, "model": "piano"}
        with client.stream("POST", "/v1/generations", json=stream) as answer:
            pieces = list(answer.iter_raw())
        assert len(pieces) >= 3 and len(b"".join(pieces)) == 44 + 2 * RATE
        assert client.post("/v1/generations", json={"seed": "x"}).status_code == 422
        refused = client.post("/v1/generations", json={}, headers={"Authorization": "Bearer no"})
        assert refused.status_code == 401
    with connect(f"ws://{address}/v1/stream", additional_headers=headers) as talk:
        talk.send(json.dumps({"seconds": 1}))
        assert json.loads(talk.recv(60))["type"] == "start"
        heard = list(talk)
    assert sum(len(piece) for piece in heard if isinstance(piece, bytes)) == 2 * RATE
