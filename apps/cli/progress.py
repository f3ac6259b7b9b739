"""Show how far long work is: bars on a terminal, now and then a line elsewhere. No torch.

What plugins print meanwhile goes to standard error: standard output is for results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field
from typing import Literal

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

from segue.apps.cli.output import console, errors

AUDIO_LINE_EVERY, TRAINING_LINE_EVERY = 30.0, 5.0  # seconds between lines
HOUR = 3600
COUNT = "{task.completed}/{task.total}"


class Bars:
    """One bar for each name; callable as a ``segue.core.progress.Progress``."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, Task] = {}

    def __call__(self, name: str, done: int, total: int) -> None:
        task = self._task(name, total, done)
        self._bars.update(task.id, completed=done, total=total)

    def training_step(self, part: str, step: int, steps: int, figures: Mapping[str, float]) -> None:
        """Advance the bar of a part in training and show its loss beside it."""
        task = self._task(part, steps, step)
        text = f"{part}  loss {figures['loss']:.3f}" if "loss" in figures else part
        self._bars.update(task.id, completed=step, total=steps, description=text)

    def wait_for(self, name: str) -> None:
        """Show a bar whose end is not known yet."""
        self._task(name, None, 0)

    def _task(self, name: str, total: int | None, done: int) -> Task:
        if name not in self._tasks:
            # Steps of an earlier run do not count as speed of this one.
            number = self._bars.add_task(name, total=total, completed=done)
            self._tasks[name] = next(task for task in self._bars.tasks if task.id == number)
        return self._tasks[name]


@dataclass
class Lines:
    """A short line now and then, for logs of long runs; callable as a ``Progress``."""

    every: float
    started: dict[str, tuple[float, int]] = field(default_factory=dict)
    printed: float = field(default_factory=time.monotonic)

    def __call__(self, name: str, done: int, total: int) -> None:
        """Report seconds of audio."""
        left = self._left(name, done, total)
        if left is not None:
            hours = f"{done / HOUR:.2f} of {total / HOUR:.2f} h"
            speed = f", {left[0]:.1f} s/s, {left[1]:.0f} min left" if left[0] else ""
            errors.print(f"{name}: {hours}{speed}")

    def training_step(self, part: str, step: int, steps: int, figures: Mapping[str, float]) -> None:
        """Report a step of training, and always the last one."""
        left = self._left(part, step, steps, always=step == steps)
        if left is not None:
            shown = [
                f"{name} {figures[name]:.4g}" for name in ("loss", "valid_loss") if name in figures
            ]
            if left[0]:  # unknown at the first line
                shown.append(f"{left[0]:.2f} steps/s, {left[1]:.0f} min left")
            console.print("  ".join([f"{part} {step}/{steps}", *shown]))

    def _left(
        self, name: str, done: int, total: int, always: bool = False
    ) -> tuple[float, float] | None:
        """Return speed and minutes left if a line is due, else None."""
        now = time.monotonic()
        start, before = self.started.setdefault(name, (now, done))
        if now - self.printed < self.every and not always:
            return None
        self.printed = now
        speed = (done - before) / max(1e-9, now - start)
        return speed, (total - done) / speed / 60 if speed > 0 else float("inf")


class _Hours(ProgressColumn):
    """Hours of audio done, of how many, and how many seconds of it a second."""

    def render(self, task: Task) -> Text:
        speed = "" if task.speed is None else f", {task.speed:.1f} s/s"
        return Text(f"{task.completed / HOUR:.2f}/{(task.total or 0) / HOUR:.2f} h{speed}")


@contextmanager
def _shown(
    quiet: bool, count: ProgressColumn, *, every: float | None = None, transient: bool = False
) -> Iterator[Bars | Lines | None]:
    """Show bars on a terminal; elsewhere a line in so many seconds, or nothing.

    Args:
        every: seconds between lines; None for work that is soon done, and shows none.
        transient: take the bars away at the end.
    """
    with redirect_stdout(sys.stderr) if quiet or every is None else nullcontext():
        if quiet or not errors.is_terminal:
            yield None if quiet or every is None else Lines(every)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            count,
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(
            *columns, console=errors, speed_estimate_period=120, transient=transient
        ) as bars:
            yield Bars(bars)


def progress_bars(quiet: bool) -> AbstractContextManager[Bars | Lines | None]:
    """Show bars on a terminal, and nothing elsewhere or if ``quiet``."""
    return _shown(quiet, TextColumn(COUNT))


def audio_progress(quiet: bool) -> AbstractContextManager[Bars | Lines | None]:
    """Show work that is counted in seconds of audio."""
    return _shown(quiet, _Hours(), every=AUDIO_LINE_EVERY)


def training_progress(quiet: bool) -> AbstractContextManager[Bars | Lines | None]:
    """Show steps of training; the log has all figures."""
    return _shown(quiet, TextColumn(COUNT), every=TRAINING_LINE_EVERY)


@contextmanager
def loading_bar() -> Iterator[Callable[[str, int, int], None] | Literal[False]]:
    """Show on a terminal that a pipeline is loaded, until it is; False elsewhere.

    The bar moves to and fro while PyTorch is imported, before the first part is counted.
    """
    with _shown(False, TextColumn(""), transient=True) as bars:
        if isinstance(bars, Bars):
            bars.wait_for("loading")
        yield bars or False
