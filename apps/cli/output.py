"""What commands print, and the files that generation writes. Imports no torch."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from segue.core.errors import OutputError, SegueError

if TYPE_CHECKING:
    from segue.core.generated import GeneratedAudio
    from segue.core.pipeline import Pipeline

# No markup: a file's name may hold brackets.
console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


@contextmanager
def one_sentence() -> Iterator[None]:
    """End the process in one sentence and exit code 2 where the user can mend what went wrong.

    Anything else is a mistake of Segue's or a plugin's and keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a path may hold what the terminal lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except SegueError as error:
        fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:  # what the core did not foresee: a full disk, a missing library
        if error.errno is None:
            fail(f"this installation: {error}; run `segue doctor`")
        place = error.filename or "a file"
        fail(f"{place}: {error.strerror}; check that place and its free space")
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        fail(
            "memory: there is not enough; ask for fewer --seconds, a lower --count or smaller parts"
        )


def _out_of_memory(error: Exception) -> bool:
    signs = ("out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)


def fail(message: str) -> NoReturn:
    """One sentence on standard error, exit code 2."""
    warn("error:", message, "bold red")
    sys.exit(2)


def note(message: str) -> None:
    """Something the user should know; on standard error, so that output stays machine-readable."""
    warn("note:", message)


def warn(label: str, message: str, style: str = "yellow") -> None:
    """One line on standard error."""
    errors.print(Text.assemble((label, style), " ", _plain(message)))


def _plain(message: str) -> str:
    """On one line; what no terminal can show, or obeys instead of showing it, is escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in " ".join(message.split())
    )


@contextmanager
def named(places: Mapping[str, object]) -> Iterator[None]:
    """Let errors name what the user wrote: an option or a file, not what the core calls it.

    Args:
        places: a ``SegueError.place`` → what to say instead.
    """
    try:
        yield
    except SegueError as error:
        error.place = str(places.get(error.place, error.place))
        raise


def print_json(data: Any) -> None:
    typer.echo(json.dumps(data, indent=2, default=str))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
    # Folded, not cut: what a narrow terminal shows is whole.
    headers = (Column(name, overflow="fold") for name in columns)
    table = Table(*headers, title=title or None, title_justify="left")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
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


def save_audio(
    pipeline: Pipeline,
    audio: GeneratedAudio,
    paths: Sequence[Path],
    picture: Path | None = None,
    title: str = "",
) -> None:
    """Write each row as an audio file and, beside it, ``<name>.json`` with all that made it.

    Args:
        paths: one for each row.
        picture: also draw the first row, under ``title``.

    Raises:
        OutputError: if any of them cannot be written; then none is.
    """
    from segue.core.audio import write_audio
    from segue.core.files import atomic_path, write_json

    rows = [(path, _metadata(audio, row)) for row, path in enumerate(paths)]
    with ExitStack() as stack:
        # They get their names when all are on disk; an audio file before its description.
        for row, (path, metadata) in enumerate(rows):
            description = stack.enter_context(atomic_path(metadata_path(path)))
            sound = stack.enter_context(atomic_path(path))
            with named({str(sound): path, str(description): metadata_path(path)}):
                write_audio(sound, audio.row(row), audio.sample_rate)
                write_json(description, metadata)
        if picture is not None:
            from segue.apps.spectrogram import draw_spectrogram

            drawing = stack.enter_context(atomic_path(picture))
            with named({str(drawing): picture}):
                draw_spectrogram(audio, drawing, title)
    for path, metadata in rows:
        pipeline.host.call_hook("segue_output_written", path=path, metadata=metadata)


def _metadata(audio: GeneratedAudio, row: int) -> dict[str, Any]:
    return {
        **audio.metadata,
        "row": row,
        "prompt_seconds": int(audio.prompt_samples[row]) / audio.sample_rate,
        "notes": list(audio.notes[row]),
    }


def metadata_path(path: Path) -> Path:
    """Where the description of an audio file goes."""
    return path.with_name(f"{path.name}.json")


def check_outputs(
    outputs: Sequence[Path], *, source: Path | None = None, picture: Path | None = None
) -> None:
    """Refuse places and suffixes that cannot be written before any work is done.

    Args:
        outputs: audio files.
        source: the recording that is read; it must not be written over.
        picture: of a spectrogram.
    """
    from segue.core.audio import check_format
    from segue.core.files import check_writable

    for path in outputs:
        check_format(path)
    pictures = [] if picture is None else [picture]
    if picture is not None:
        from segue.apps.spectrogram import check_picture

        check_picture(picture)
    for path in (*outputs, *map(metadata_path, outputs), *pictures):
        check_writable(path)
        if source is not None and path.exists() and source.exists() and path.samefile(source):
            raise OutputError(str(path), "is the recording to be read", "name another file")


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
