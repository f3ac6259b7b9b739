"""Show the progress of long work as bars, in terminals and notebooks. Imports no torch."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any, TypeVar

from segue.core.progress import Progress, ProgressChoice

WAIT = 1.0  # seconds: shorter work shows no bar
REDRAW = 0.2  # seconds between two pictures in a notebook

Item = TypeVar("Item")

_by_default = True


def bars_by_default(shown: bool) -> None:
    """Choose whether methods of a pipeline show bars when they are not asked to."""
    global _by_default
    _by_default = shown


@contextmanager
def shown(choice: ProgressChoice) -> Iterator[Progress | None]:
    """Yield the callback that a caller's choice means; bars end with the block."""
    if callable(choice):
        yield choice
        return
    notebook = in_notebook()
    seen = notebook or (sys.stderr is not None and sys.stderr.isatty())
    if choice is False or (choice is None and not (_by_default and seen)):
        yield None
        return
    bars = _NotebookBars() if notebook else _TerminalBars()
    start = time.monotonic() + (0 if choice else WAIT)

    def report(name: str, done: int, total: int) -> None:
        bars.note(name, done, total, time.monotonic() >= start)

    try:
        yield report
    finally:
        bars.stop()


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    shell = get_ipython()
    return type(shell).__name__ == "ZMQInteractiveShell"


class _TerminalBars:
    """One bar for each name, on standard error."""

    def __init__(self) -> None:
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}

    def note(self, name: str, done: int, total: int, visible: bool) -> None:
        if not visible:
            return
        if self._bars is None:
            from rich.console import Console
            from rich.progress import Progress as RichProgress

            self._bars = RichProgress(console=Console(stderr=True), transient=True)
            self._bars.start()
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total)
        self._bars.update(self._tasks[name], completed=done, total=total)

    def stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()


class _NotebookBars:
    """One bar for each name, below the cell."""

    def __init__(self) -> None:
        self._done: dict[str, tuple[int, int]] = {}
        self._handle: Any = None
        self._drawn = 0.0

    def note(self, name: str, done: int, total: int, visible: bool) -> None:
        self._done[name] = (done, total)
        if visible and (done == total or time.monotonic() - self._drawn > REDRAW):
            self._draw("".join(self._line(*each) for each in self._done.items()))

    def _line(self, name: str, numbers: tuple[int, int]) -> str:
        done, total = numbers
        bar = f'<progress value="{done}" max="{total}"></progress>'
        return f"<div>{bar} {escape(name)} {done}/{total}</div>"

    def _draw(self, content: str) -> None:
        from IPython.display import HTML, display

        self._drawn = time.monotonic()
        page = HTML(content)
        if self._handle is None:
            self._handle = display(page, display_id=True)
        else:
            self._handle.update(page)

    def stop(self) -> None:
        if self._handle is not None:
            self._draw("")


def tracked(items: Sequence[Item], name: str, progress: Progress | None) -> Iterator[Item]:
    """Yield the items of long work and report each as done when the next one is asked for."""
    for done, item in enumerate(items, start=1):
        yield item
        if progress is not None:
            progress(name, done, len(items))
