"""Make a manifest of any source: what can be used, split by groups, and a list of what cannot."""

from __future__ import annotations

import csv
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy

from segue.core.errors import DataError
from segue.core.files import atomic_path, write_json
from segue.core.progress import Progress
from segue.data.manifest import COLUMNS
from segue.data.places import is_url
from segue.data.recordings import WHOLE_FILE, Recording, Recordings
from segue.data.scan import CHUNK, Scanned, chunk_file, first_of_each, read_chunk, scan
from segue.data.sources import Grouping, list_recordings

MANIFEST, PROBLEMS, SUMMARY = "manifest.csv", "problems.csv", "summary.json"
WORK = ".scan"  # what was heard so far; taken away at the end

_PLAIN = ("split", "group", "duration_s")  # columns that every manifest has


def prepare_files(
    source: Path | str,
    output: Path,
    *,
    grouping: Grouping | None = None,
    min_seconds: float = 0.1,
    workers: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Scan a source; write ``manifest.csv``, ``problems.csv`` and a summary; return the summary.

    A run that was killed goes on where it was. Recordings that are corrupt, silent, too short, hold
    NaN or the same sound as an earlier one are listed with the reason and left out.

    Args:
        progress: called with ``seconds``, seconds of audio scanned, and an estimate of all.

    Raises:
        DataError: if the source cannot be read or nothing of it can be used.
    """
    for left in output.glob(".tmp-*.csv"):  # of a run that was killed
        left.unlink()
    listed: list[tuple[str, str]] = []
    recordings = list_recordings(source, lambda *problem: listed.append(problem), grouping)
    done, seconds = 0, 0.0
    for count, length in scan(recordings, output / WORK, min_seconds, workers):
        done, seconds = done + count, seconds + length
        if progress is not None:
            progress("scan", round(seconds), round(seconds * len(recordings) / max(1, done)))
    if not is_url(str(source)) and not Path(source).exists() and "{" not in str(source):
        raise DataError(str(source), "has vanished", "bring it back and run the same command")
    summary = _write(output, source, recordings, listed, min_seconds)
    shutil.rmtree(output / WORK, ignore_errors=True)
    return summary


def _write(
    output: Path,
    source: Path | str,
    recordings: Recordings,
    listed: list[tuple[str, str]],
    min_seconds: float,
) -> dict[str, Any]:
    """Write both lists and the summary; they get their names when all are on disk."""
    same = _duplicates(output, recordings, min_seconds)
    counts: Counter[str] = Counter({"not usable": len(listed)} if listed else {})
    splits: Counter[str] = Counter()
    seconds: dict[str, float] = defaultdict(float)
    groups: dict[str, set[str]] = defaultdict(set)
    columns = _columns(recordings)
    with ExitStack() as stack:
        problems = _table(stack, output / PROBLEMS, ("path", "problem", "what"))
        manifest = _table(stack, output / MANIFEST, ("path", *columns))
        problems.writerows((place, "not usable", what) for place, what in listed)
        for index, (recording, heard) in enumerate(_heard(output, recordings, min_seconds)):
            kind, what = heard.kind, heard.problem
            if not kind and same[index] != index:
                kind, what = "duplicate", f"sounds as {recordings[int(same[index])].place}"
            if kind:
                counts[kind] += 1
                problems.writerow((_text(recording.place), kind, _text(what)))
                continue
            splits[recording.split] += 1
            seconds[recording.split] += heard.seconds
            groups[recording.split].add(recording.group)
            where = recording.where
            if not is_url(where):  # absolute, so that the manifest can be used from anywhere
                where = os.path.abspath(where)  # noqa: PTH100
            manifest.writerow((where, *_cells(recording, heard, columns)))
        if not splits:
            first = next(iter(counts), "there is none")
            fix = "add audio" if not counts else f"most are {first}: check the files"
            raise DataError(str(source), "holds no recording that can be used", fix)
    summary = {
        "source": str(source),
        "recordings": sum(splits.values()),
        "hours": {split: round(seconds[split] / 3600, 3) for split in splits},
        "splits": dict(splits),
        "groups": {split: len(groups[split]) for split in splits},
        "left_out": dict(sorted(counts.items())),
    }
    write_json(output / SUMMARY, summary)
    return summary


def _duplicates(output: Path, recordings: Recordings, min_seconds: float) -> Any:
    """Return, for each recording, the first one with the same sound; problems equal nothing."""
    sounds = numpy.empty(len(recordings), numpy.uint64)
    usable = numpy.zeros(len(recordings), bool)
    for index, (_, heard) in enumerate(_heard(output, recordings, min_seconds)):
        sounds[index], usable[index] = heard.sound, not heard.kind
    same = numpy.arange(len(recordings))
    (places,) = numpy.nonzero(usable)
    same[places] = places[first_of_each(sounds[places])]
    return same


def _heard(
    output: Path, recordings: Recordings, min_seconds: float
) -> Iterator[tuple[Recording, Scanned]]:
    """Yield every recording with its scan, one chunk in memory at a time."""
    for number in range(-(-len(recordings) // CHUNK)):
        heard = read_chunk(chunk_file(output / WORK, recordings, number, min_seconds))
        yield from zip(recordings[number * CHUNK : (number + 1) * CHUNK], heard, strict=True)


def _table(stack: ExitStack, path: Path, header: tuple[str, ...]) -> Any:
    """Open a CSV writer whose file appears whole or not at all."""
    temporary = stack.enter_context(atomic_path(path))
    file: IO[str] = stack.enter_context(
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape")
    )
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    return writer


def _columns(recordings: Recordings) -> tuple[str, ...]:
    """Return the columns that some recording needs."""
    table = recordings.columns
    needed = set(_PLAIN)
    if (table["size"] != WHOLE_FILE).any():
        needed |= {"offset", "size", "member"}
    if not numpy.isnan(table["start"]).all():
        needed.add("start_s")
    if (table["channel"] >= 0).any():
        needed.add("channel")
    return tuple(name for name in COLUMNS if name in needed)


def _cells(recording: Recording, heard: Scanned, columns: tuple[str, ...]) -> list[Any]:
    whole = recording.size == WHOLE_FILE
    cells = {
        "split": recording.split,
        "group": recording.group,
        "duration_s": f"{heard.seconds:.6f}".rstrip("0").rstrip("."),
        "offset": "" if whole else recording.offset,
        "size": "" if whole else recording.size,
        "member": recording.member,
        "start_s": "" if recording.start is None else repr(recording.start),
        "channel": "" if recording.channel is None else recording.channel,
    }
    return [cells[name] for name in columns]


def _text(text: str) -> str:
    return " ".join(text.split("\n"))
