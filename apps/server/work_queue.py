"""Queue jobs, compute those that fit together as one batch, and stop those nobody waits for.

One thread computes batches, a few more compute streams. They share the device in turns: each
computes until its next piece of audio or pass of a model, then lets the next one. A job therefore
stops, and a stream goes on, within one such step, however long the others are.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any

from segue.apps.server.limits import MOST_RETRY_AFTER, Limits, Metrics
from segue.core.audio import Audio
from segue.inference.pipeline import Pipeline
from segue.inference.request import GeneratedAudio, PromptAudio, Task

log = logging.getLogger("segue.server")


class StoppedError(Exception):
    """Nobody waits for the result any more, or the server closes."""


@dataclass(frozen=True)
class Order:
    """One request for audio, checked."""

    pipeline: Pipeline
    seconds: float
    seed: int
    sampling: Mapping[str, Mapping[str, Any]]
    prompt: Audio | None = None  # the recording to continue, or to fill; None generates without one
    prompt_audio: PromptAudio = "original"
    chunk_seconds: float | None = None
    stream: bool = False  # deliver chunks of the new audio as they are made, not the whole
    gap: tuple[float, float] | None = None  # start and end of the stretch to fill, in seconds
    candidates: int = 1

    @property
    def task(self) -> Task:
        if self.gap is not None:
            return "fill"
        return "generate" if self.prompt is None else "continue"

    @property
    def asked(self) -> dict[str, Any]:
        """The arguments of ``Pipeline.request`` that differ between tasks."""
        if self.gap is not None:
            return {"gap": self.gap, "candidates": self.candidates, "whole": True}
        return {"seconds": self.seconds, "chunk_seconds": self.chunk_seconds}

    @property
    def kind(self) -> tuple[object, ...]:
        """Everything that must be equal for orders to be computed as one batch."""
        sampling = json.dumps(self.sampling, sort_keys=True)
        if self.gap is not None:  # filled alone
            return (id(self),)
        name = id(self.pipeline), self.task, self.prompt_audio
        return *name, self.seconds, self.chunk_seconds, sampling


@dataclass(frozen=True)
class Piece:
    """A row of generated audio: a whole result, or a chunk of a stream."""

    audio: GeneratedAudio
    row: int = 0


class Job:
    """An order in the queue. Its pieces arrive in ``outbox``; after the last one comes None, or an
    exception in place of what is missing."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.stopped = False
        self.outbox: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def put(self, *items: Piece | Exception | None) -> None:
        """Deliver items from another thread."""
        if self._loop.is_closed():
            return
        for item in items:
            self._loop.call_soon_threadsafe(self.outbox.put_nowait, item)


class Turns:
    """A lock that is handed on in the order in which threads asked for it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._tickets, self._serving = itertools.count(), 0

    def _take(self) -> None:
        with self._changed:
            ticket = next(self._tickets)
            self._changed.wait_for(lambda: self._serving == ticket)

    def _give(self) -> None:
        with self._changed:
            self._serving += 1
            self._changed.notify_all()

    @contextmanager
    def mine(self) -> Iterator[None]:
        """Compute in this block while no other thread does."""
        self._take()
        try:
            yield
        finally:
            self._give()

    def hand_on(self) -> None:
        """Let the others compute first, inside ``mine``."""
        self._give()
        self._take()


@dataclass
class WorkQueue:
    """The queue and the threads that empty it."""

    limits: Limits
    metrics: Metrics
    _turns: Turns = field(default_factory=Turns)
    _waiting: dict[bool, deque[Job]] = field(
        default_factory=lambda: {False: deque(), True: deque()}
    )
    _arrived: threading.Condition = field(default_factory=threading.Condition)
    _closed: bool = False
    _job_seconds: float = 1.0  # running mean, for Retry-After

    def __post_init__(self) -> None:
        self.metrics.waiting.set_function(lambda: sum(map(len, self._waiting.values())))
        streams = [True] * self.limits.streams
        self._threads = [
            threading.Thread(target=self._work, args=(stream,), daemon=True)
            for stream in (False, *streams)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        """Return whether all threads work and more can be ordered."""
        return not self._closed and all(thread.is_alive() for thread in self._threads)

    def retry_after(self) -> int:
        """Return the seconds after which the queue should have moved on."""
        batches = len(self._waiting[False]) / self.limits.batch
        streams = len(self._waiting[True]) / self.limits.streams
        seconds = math.ceil((1 + max(batches, streams)) * self._job_seconds)
        return max(1, min(MOST_RETRY_AFTER, seconds))

    def close(self) -> None:
        """Stop all jobs and end the threads."""
        with self._arrived:
            self._closed = True
            self._arrived.notify_all()
        for thread in self._threads:
            thread.join()
        for jobs in self._waiting.values():
            for job in jobs:
                job.put(StoppedError())

    async def run(self, order: Order) -> AsyncGenerator[Piece, None]:
        """Compute an order and yield its pieces; closing the generator stops the work.

        Raises:
            StoppedError: if the server closes.
            SegueError: if the pipeline refuses the order.
        """
        job, waiting = Job(order), self._waiting[order.stream]
        with self._arrived:
            if self._closed:
                raise StoppedError
            waiting.append(job)
            self._arrived.notify_all()
        try:
            while (item := await job.outbox.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            job.stopped = True
            with self._arrived:
                if job in waiting:
                    waiting.remove(job)
                    self.metrics.stopped.inc()

    async def result(self, order: Order) -> Piece:
        """Compute an order that is not a stream."""
        async with aclosing(self.run(order)) as pieces:
            async for piece in pieces:
                return piece
        raise StoppedError

    # --- threads --------------------------------------------------------------------------------

    def _work(self, stream: bool) -> None:
        while jobs := self._next(stream):
            self.metrics.running.inc(len(jobs))
            started = time.monotonic()
            try:
                self._run(jobs)
            finally:
                self.metrics.running.dec(len(jobs))
            self._job_seconds += 0.2 * (time.monotonic() - started - self._job_seconds)

    def _next(self, stream: bool) -> list[Job]:
        """Return the first job and those behind it that fit in its batch; [] to end."""
        waiting, most = self._waiting[stream], 1 if stream else self.limits.batch
        with self._arrived:
            while not self._closed:
                self._arrived.wait_for(lambda: bool(waiting) or self._closed)
                if waiting and len(waiting) < most:
                    full = lambda: len(waiting) >= most or self._closed  # noqa: E731
                    self._arrived.wait_for(full, self.limits.gather_seconds)
                jobs = self._fitting(waiting, most)
                if jobs:
                    return jobs
        return []

    def _fitting(self, waiting: deque[Job], most: int) -> list[Job]:
        fitting = (job for job in list(waiting) if job.order.kind == waiting[0].order.kind)
        chosen = list(itertools.islice(fitting, most)) if waiting else []
        for job in chosen:
            waiting.remove(job)
        return chosen

    def _run(self, jobs: Sequence[Job]) -> None:
        """Compute jobs together and deliver; if that fails, each alone, as one may be at fault."""
        try:
            with self._turns.mine():
                if jobs[0].order.stream:
                    self._stream(jobs[0])
                else:
                    self._batch(jobs)
        except StoppedError as stopped:
            self.metrics.stopped.inc(len(jobs))
            for job in jobs:
                job.put(stopped)
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    self._run([job])
            else:
                jobs[0].put(error)

    def _batch(self, jobs: Sequence[Job]) -> None:
        order, step = jobs[0].order, self._step(jobs)
        self.metrics.batches.observe(len(jobs))
        step()
        seeds = [job.order.seed for job in jobs]
        request = order.pipeline.request(
            order.task,
            [job.order.prompt for job in jobs if job.order.prompt is not None],
            {"sampling": order.sampling, "seed": seeds},
            batch=len(jobs),
            prompt_audio=order.prompt_audio,
            **order.asked,
        )
        audio = order.pipeline.run(request, step)
        for row, job in enumerate(jobs):
            self._count(order, audio, row)
            job.put(Piece(audio, row), None)

    def _stream(self, job: Job) -> None:
        order, step = job.order, self._step([job])
        assert order.chunk_seconds is not None
        step()
        chunks = order.pipeline.stream(
            order.prompt,
            seconds=order.seconds,
            chunk_seconds=order.chunk_seconds,
            seed=order.seed,
            sampling=order.sampling,
            progress=step,
        )
        for chunk in chunks:
            self._count(order, chunk, 0)
            job.put(Piece(chunk))
            step()
        job.put(None)

    def _step(self, jobs: Sequence[Job]) -> Any:
        """Return what is called between two steps of the work."""

        def step(*_progress: object) -> None:
            self._turns.hand_on()
            if self._closed or all(job.stopped for job in jobs):
                raise StoppedError

        return step

    def _count(self, order: Order, audio: GeneratedAudio, row: int) -> None:
        seconds = audio.continuation(row).shape[0] / audio.sample_rate
        self.metrics.audio.labels(order.task).inc(seconds)
