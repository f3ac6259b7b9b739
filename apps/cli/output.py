"""What commands print, and the files that generation writes. Imports no torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from segue.core.generated import GeneratedAudio
    from segue.core.pipeline import Pipeline

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def fail(message: str) -> NoReturn:
    """One sentence on standard error, exit code 2."""
    errors.print(f"[bold red]error:[/] {_plain(message)}")
    sys.exit(2)


def note(message: str) -> None:
    """Something the user should know; on standard error, so that output stays machine-readable."""
    errors.print(f"[yellow]note:[/] {_plain(message)}")


def _plain(message: str) -> str:
    return " ".join(message.split()).replace("[", r"\[")


def print_json(data: Any) -> None:
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False, default=str))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
    table = Table(*columns, title=title or None, title_justify="left")
    for row in rows:
        table.add_row(*(str(cell).replace("[", r"\[") for cell in row))
    console.print(table)


class StageProgress:
    """Progress bars, one per stage; callable as the core's progress callbacks are."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, Any] = {}

    def __call__(self, name: str, done: int, total: int) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total)
        self._bars.update(self._tasks[name], completed=done, total=total)


@contextmanager
def progress_bars(quiet: bool) -> Iterator[StageProgress | None]:
    """Bars on standard error, or None where nobody would see them."""
    if quiet or not errors.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors) as bars:
        yield StageProgress(bars)


def save_audio(pipeline: Pipeline, audio: GeneratedAudio, path: Path, row: int = 0) -> None:
    """Write one row as an audio file and, beside it, ``<name>.json`` with all that made it."""
    from segue.core.audio import write_audio
    from segue.core.files import write_json

    metadata = {
        **audio.metadata,
        "row": row,
        "prompt_seconds": int(audio.prompt_samples[row]) / audio.sample_rate,
        "notes": list(audio.notes[row]),
    }
    write_audio(path, audio.row(row), audio.sample_rate)
    write_json(metadata_path(path), metadata)
    pipeline.host.call_hook("segue_output_written", path=path, metadata=metadata)


def metadata_path(path: Path) -> Path:
    """Where the description of an audio file goes."""
    return path.with_name(f"{path.name}.json")


def check_output(path: Path) -> None:
    """Refuse a place or suffix that cannot be written before any work is done."""
    from segue.core.audio import check_format
    from segue.core.files import check_writable

    check_format(path)
    check_writable(path)


def summary(
    audio: GeneratedAudio, path: Path, elapsed: float, notes: Sequence[str]
) -> Mapping[str, Any]:
    """What a machine may want to know of one generation."""
    seconds = int(audio.lengths.sum() - audio.prompt_samples.sum()) / audio.sample_rate
    return {
        "output": str(path),
        "seconds_generated": round(seconds, 3),
        "elapsed_seconds": round(elapsed, 3),
        "real_time_factor": round(seconds / elapsed, 3) if elapsed else None,
        "seed": audio.metadata["seed"],
        "pipeline": audio.metadata["pipeline"],
        "sample_rate": audio.sample_rate,
        "notes": list(notes),
    }
