"""The limits of a server, and its figures for Prometheus. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

MOST_RETRY_AFTER = 60  # seconds after which a full server asks clients to come back


@dataclass(frozen=True)
class Limits:
    """Bound what one server takes on; everything beyond is refused at once."""

    upload_bytes: int = 16 * 2**20  # size of a request's body
    prompt_seconds: float = 120.0  # length of a recording, decoded
    seconds: float = 60.0  # length of audio that a request may ask for
    requests: int = 64  # requests inside at once: uploading, waiting and running
    batch: int = 8  # requests that are computed together
    streams: int = 4  # streams that are computed at once; they take turns
    upload_timeout: float = 30.0  # seconds within which a body must have arrived
    timeout: float = 300.0  # seconds within which a request must be answered, waiting included
    gather_seconds: float = 0.02  # time to wait for companions when a batch is not full


class Metrics:
    """Figures of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "segue_requests",
            "Requests by route and status.",
            ["route", "status"],
            registry=registry,
        )
        self.latency = Histogram(
            "segue_request_seconds",
            "Time from a request's first byte to its answer's last.",
            ["route"],
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
            registry=registry,
        )
        self.inside = Gauge("segue_requests_inside", "Requests now inside.", registry=registry)
        self.waiting = Gauge("segue_jobs_waiting", "Jobs that wait to be run.", registry=registry)
        self.running = Gauge("segue_jobs_running", "Jobs now computed.", registry=registry)
        self.batches = Histogram(
            "segue_batch_size",
            "Requests computed together.",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=registry,
        )
        self.stopped = Counter(
            "segue_jobs_stopped", "Jobs stopped as nobody waited any more.", registry=registry
        )
        self.audio = Counter(
            "segue_audio_seconds", "Seconds of audio generated.", ["task"], registry=registry
        )
