"""Progress of work that is counted in seconds of audio: how fast, how long to go. No torch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from segue.apps.cli.output import errors

LINE_EVERY = 30.0  # seconds between lines where there is no terminal to draw on


class _Hours(ProgressColumn):
    """How much audio is done of how much, and how much in a second."""

    def render(self, task: Task) -> Text:
        speed = "" if task.speed is None else f", {task.speed:.1f} s/s"
        return Text(f"{task.completed / 3600:.2f}/{(task.total or 0) / 3600:.2f} h{speed}")


@dataclass
class AudioLines:
    """Now and then a line on standard error: for logs of long runs."""

    started: float = field(default_factory=time.monotonic)
    told: float = field(default_factory=time.monotonic)
    before: int | None = None

    def __call__(self, name: str, done: int, total: int) -> None:
        now = time.monotonic()
        if self.before is None:  # what an earlier run did is no speed of this one
            self.before, self.started = done, now
        if now - self.told >= LINE_EVERY:
            self.told = now
            errors.print(self.line(name, done, total, now))

    def line(self, name: str, done: int, total: int, now: float) -> str:
        speed = (done - (self.before or 0)) / max(1e-9, now - self.started)
        left = f", {(total - done) / speed / 60:.0f} min left" if speed > 0 else ""
        return f"{name}: {done / 3600:.2f} of {total / 3600:.2f} h, {speed:.1f} s/s{left}"


@contextmanager
def audio_progress(quiet: bool) -> Iterator[AudioBars | AudioLines | None]:
    """A bar on a terminal, lines elsewhere, or None if nothing is to be shown."""
    if quiet:
        yield None
        return
    if not errors.is_terminal:
        yield AudioLines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        _Hours(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors, speed_estimate_period=120) as bars:
        yield AudioBars(bars)


class AudioBars:
    """One bar for each name; callable as the core's progress callbacks are."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, int] = {}

    def __call__(self, name: str, done: int, total: int) -> None:
        if name not in self._tasks:
            self._tasks[name] = int(self._bars.add_task(name, total=total, completed=done))
        self._bars.update(self._tasks[name], completed=done, total=total)  # type: ignore[arg-type]
