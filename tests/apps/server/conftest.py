"""A server on a tiny pipeline, run by uvicorn in a thread: requests go over real sockets."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from segue import Pipeline
from segue.apps.server.app import create_app
from segue.apps.server.limits import Limits

#: Tiny pipelines are fast: what must last for a moment has to be long.
MOST_SECONDS = 1000.0


@dataclass
class Live:
    """A running server."""

    app: FastAPI
    server: uvicorn.Server
    client: httpx.Client
    port: int

    def figure(self, name: str, **labels: str) -> float:
        """Return a figure of /metrics, 0 if it was not counted yet."""
        wanted = ",".join(f'{key}="{value}"' for key, value in labels.items())
        for line in self.client.get("/metrics").text.splitlines():
            key, _, value = line.rpartition(" ")
            if key == (f"{name}{{{wanted}}}" if wanted else name):
                return float(value)
        return 0.0

    def wait_for(self, happened: Callable[[], bool], seconds: float = 20.0) -> None:
        until = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < until, "it did not happen in time"
            time.sleep(0.01)


@contextmanager
def serving(
    pipelines: dict[str, Pipeline], limits: Limits, key: str | None, signer: Any = None
) -> Iterator[Live]:
    app = create_app(pipelines, limits, key, signer)
    config = uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=10)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield Live(app, server, client, port)
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        frames = sys._current_frames().values()
        stacks = "\n".join("".join(traceback.format_stack(frame)) for frame in frames)
        assert not thread.is_alive(), f"the server did not end; all threads:\n{stacks}"


@pytest.fixture(scope="session")
def served_pipeline(tiny_pipelines: dict[str, Path]) -> Pipeline:
    return Pipeline.from_pretrained(tiny_pipelines["speech"])


@pytest.fixture
def serve(served_pipeline: Pipeline) -> Iterator[Callable[..., Live]]:
    """Start a server with these limits; it ends with the test."""
    open_servers: list[Any] = []

    def start(key: str | None = None, signer: Any = None, **limits: Any) -> Live:
        context = serving(
            {"speech": served_pipeline}, Limits(**{"seconds": MOST_SECONDS} | limits), key, signer
        )
        open_servers.append(context)
        return context.__enter__()

    yield start
    for context in open_servers:
        context.__exit__(None, None, None)


@pytest.fixture(scope="session")
def live(served_pipeline: Pipeline) -> Iterator[Live]:
    """A server that the tests of a run share."""
    with serving(
        {"speech": served_pipeline, "second": served_pipeline}, Limits(seconds=MOST_SECONDS), None
    ) as live:
        yield live
