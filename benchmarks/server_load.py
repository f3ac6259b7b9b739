"""Whether the server loses nothing under load, and what batches gain.

    python benchmarks/server_load.py [--clients 200] [--requests 2] [--json FILE]

Many clients ask one server, over real sockets, for continuations of different prompts with
different seeds; whoever gets 429 comes back after Retry-After. Every answer is compared, byte by
byte, with what the pipeline makes of that prompt alone. The same requests one after the other give
the baseline of the throughput.
"""

from __future__ import annotations

import argparse
import resource
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the checkout's root, not from beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import httpx
import torch
import uvicorn

from benchmarks.report import Report, reported
from segue import Pipeline
from segue.apps.server.app import create_app
from segue.apps.server.limits import Limits
from segue.core.audio import Audio, encoded_audio

KINDS = 8  # different prompts; each has a seed for every request


def megabytes() -> float:
    """Return the memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


class Watch:
    """Sample the memory of this process while a block runs."""

    def __enter__(self) -> Watch:
        self.peak, self._over = megabytes(), threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(0.05):
            self.peak = max(self.peak, megabytes())

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()


def prompts(pipeline: Pipeline) -> list[Audio]:
    """Return recordings of different lengths."""
    rate = pipeline.sample_rate
    waves = [0.1 * torch.randn(round((0.6 + 0.1 * kind) * rate)) for kind in range(KINDS)]
    return [Audio(wave.clamp(-1, 1), rate) for wave in waves]


def wav(wave: torch.Tensor, rate: int, subtype: str = "PCM_16") -> bytes:
    return encoded_audio(wave, rate, "WAV", subtype)


def serve(pipeline: Pipeline, limits: Limits) -> tuple[uvicorn.Server, str]:
    """Start a server in a thread; return it and its address."""
    app = create_app({"model": pipeline}, limits)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    return server, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"


def figure(url: str, name: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


def load(
    url: str, files: list[bytes], clients: int, requests: int, seconds: float
) -> tuple[dict[int, bytes], int, float]:
    """Let clients ask at once; return the answers by seed, the number of 429, and the time."""
    answers: dict[int, bytes] = {}
    turned_away: list[int] = []

    def client(number: int) -> None:
        with httpx.Client(timeout=600) as session:
            for turn in range(requests):
                seed = number * requests + turn
                audio, form = files[seed % KINDS], {"seconds": str(seconds), "seed": str(seed)}
                while True:
                    answer = session.post(
                        f"{url}/v1/continuations", data=form, files={"audio": audio}
                    )
                    if answer.status_code != 429:
                        break
                    turned_away.append(seed)
                    time.sleep(int(answer.headers["retry-after"]))
                answer.raise_for_status()
                answers[seed] = answer.content

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for done in [pool.submit(client, number) for number in range(clients)]:
            done.result()
    return answers, len(turned_away), time.perf_counter() - started


def measure(report: Report, pipeline: Pipeline, arguments: Any) -> None:
    recordings, seconds = prompts(pipeline), arguments.seconds
    # As floats, so that what the server decodes is what the pipeline is given here.
    files = [wav(audio.wave, audio.sample_rate, "FLOAT") for audio in recordings]
    total = arguments.clients * arguments.requests

    def alone(seed: int) -> bytes:
        made = pipeline.continue_(recordings[seed % KINDS], seconds=seconds, seed=seed)
        return wav(made.row(), made.sample_rate)

    alone(0)  # compile the kernel, fill caches
    limits = Limits(requests=arguments.inside, batch=arguments.batch)
    rates: dict[str, float] = {}
    for name, clients, requests in (
        ("one at a time", 1, min(total, 40)),
        ("together", arguments.clients, arguments.requests),
    ):
        server, url = serve(pipeline, limits)
        before = megabytes()
        with Watch() as watch:
            answers, refused, took = load(url, files, clients, requests, seconds)
        count = clients * requests
        rates[name] = report.note(f"{name}: rate", count / took, "requests/s")
        report.note(f"{name}: peak memory added", watch.peak - before, "MB")
        report.note(f"{name}: answers of 429", refused, "")
        size = figure(url, "segue_batch_size_sum") / figure(url, "segue_batch_size_count")
        report.note(f"{name}: mean batch", size, "requests")
        assert figure(url, "segue_requests_inside") == 0
        server.should_exit = True
        check(report, name, answers, count, alone)
    meaning = f"{arguments.clients} clients, batches of at most {limits.batch}, over one at a time"
    report.ratio("throughput", rates["together"] / rates["one at a time"], meaning)


def check(
    report: Report, name: str, answers: dict[int, bytes], count: int, alone: Callable[[int], bytes]
) -> None:
    """Compare all answers, or every tenth of many, with what the pipeline makes alone."""
    lost = count - len(answers)
    looked = sorted(answers)[:: 10 if count > 100 else 1]
    wrong = sum(answers[seed] != alone(seed) for seed in looked)
    report.note(f"{name}: lost", lost, f"of {count}")
    report.note(f"{name}: other bytes than alone", wrong, f"of {len(looked)} compared")
    if lost or wrong:
        raise SystemExit("answers are missing or wrong")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pipeline", default="speech", help="shipped weights or a directory")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--requests", type=int, default=2, help="of each client")
    parser.add_argument("--seconds", type=float, default=1.0, help="of audio asked for")
    parser.add_argument("--inside", type=int, default=64, help="requests that the server holds")
    parser.add_argument("--batch", type=int, default=8)
    torch.manual_seed(0)
    with reported(parser) as (arguments, report):
        measure(report, Pipeline.from_pretrained(arguments.pipeline), arguments)


if __name__ == "__main__":
    main()
