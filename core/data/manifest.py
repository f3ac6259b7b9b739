"""Lists of recordings: a folder of audio, or a CSV manifest."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import soundfile

from segue.core.errors import DataError

Split = Literal["train", "valid"]
SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif"}
VALID_SHARE = 20  # one group of recordings in so many is held out when a folder names no split


@dataclass(frozen=True)
class Recording:
    """One audio file: where it is, how long, which group (speaker or piece) and split it is of."""

    path: Path
    seconds: float
    group: str
    split: Split


def read_recordings(source: Path) -> list[Recording]:
    """Every recording of a source, of whatever split.

    Args:
        source: a folder (every audio file below it; the folder a file lies in is its group), or a
            CSV file with a column ``path`` (relative to the manifest) and optionally ``split``
            (``train``/``valid``), ``speaker`` or ``group``, and ``duration_s``.

    Raises:
        DataError: if there is no such source or it cannot be read.
    """
    if not source.exists():
        raise DataError(str(source), "does not exist", "name a folder of audio or a CSV manifest")
    return _from_folder(source) if source.is_dir() else _from_csv(source)


def load_recordings(source: Path, split: Split) -> list[Recording]:
    """The recordings of one split of a source; see ``read_recordings``.

    Raises:
        DataError: if the source cannot be read or holds nothing of that split.
    """
    return of_split(read_recordings(source), split, source)


def of_split(recordings: Sequence[Recording], split: Split, source: Path) -> list[Recording]:
    """Those of one split.

    Raises:
        DataError: naming ``source``, if there are none.
    """
    chosen = [recording for recording in recordings if recording.split == split]
    if not chosen:
        raise DataError(
            str(source),
            f"holds no recording of the split {split!r}",
            f"add audio ({', '.join(sorted(SUFFIXES))}) or rows with split={split}",
        )
    return chosen


def _from_folder(folder: Path) -> list[Recording]:
    paths = sorted(path for path in folder.rglob("*") if _is_audio(path, folder))
    groups = {str(path.parent.relative_to(folder)) for path in paths}
    by_file = len(groups) < 2  # one flat folder: every file is a group of its own
    found = []
    for path in paths:
        group = path.stem if by_file else str(path.parent.relative_to(folder))
        seconds = _seconds(path)
        if seconds > 0:
            found.append(Recording(path, seconds, group, "train"))
    return _split_by_group(found)


def _is_audio(path: Path, folder: Path) -> bool:
    """Hidden files are none: what a killed run left, or an operating system put there."""
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix.lower() in SUFFIXES and not hidden


def _split_by_group(recordings: Sequence[Recording]) -> list[Recording]:
    """Hold out whole groups, chosen by a hash of their names, and at least one of several."""

    def rank(group: str) -> int:
        return int(hashlib.sha256(group.encode()).hexdigest()[:8], 16)

    groups = sorted({recording.group for recording in recordings}, key=rank)
    held = set(groups[: max(1, len(groups) // VALID_SHARE)]) if len(groups) > 1 else set()
    return [
        Recording(r.path, r.seconds, r.group, "valid" if r.group in held else "train")
        for r in recordings
    ]


def _seconds(path: Path) -> float:
    try:
        return float(soundfile.info(path).duration)
    except (soundfile.LibsndfileError, RuntimeError):
        return 0.0


def _from_csv(path: Path) -> list[Recording]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            numbered = [(reader.line_num, row) for row in reader]
            columns = reader.fieldnames or ()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(str(path), f"cannot be read ({error})", "give a UTF-8 CSV file") from error
    if "path" not in columns:
        raise DataError(str(path), "has no column 'path'", "add a header line with 'path'")
    recordings = [_from_row(path, line, row) for line, row in numbered]
    return recordings if "split" in columns else _split_by_group(recordings)


def _from_row(manifest: Path, line: int, row: dict[str, str]) -> Recording:
    place = f"{manifest}, line {line}"
    if not row["path"]:
        raise DataError(place, "names no path", "fill the column 'path' or delete the line")
    path = manifest.parent / row["path"]
    split = row.get("split") or "train"
    if split not in ("train", "valid"):
        raise DataError(place, f"split {split!r} is unknown", "write train or valid")
    try:
        seconds = float(row["duration_s"]) if row.get("duration_s") else _seconds(path)
    except ValueError as error:
        raise DataError(
            place, f"duration_s {row['duration_s']!r} is no number", "give seconds"
        ) from error
    if not 0 <= seconds < math.inf:
        raise DataError(place, f"duration_s {seconds:g} is no length", "give seconds")
    group = row.get("group") or row.get("speaker") or path.stem
    return Recording(path, seconds, group, "train" if split == "train" else "valid")
