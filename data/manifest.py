"""List recordings of a folder of audio or of a CSV manifest."""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

from segue.core.errors import DataError
from segue.data.places import PLACE_ERRORS, beside, files_below, open_bytes
from segue.data.recordings import UNKNOWN, WHOLE_FILE, Recording, Split

Note = Callable[[str, str], None]  # called with what cannot be used, and why

#: Formats that libsndfile reads, by suffix.
SUFFIXES = {
    ".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".aiff", ".aif", ".aifc",
    ".au", ".snd", ".caf", ".w64", ".rf64", ".sph", ".nist", ".voc",
}  # fmt: skip

#: Audio that libsndfile cannot read: reported, so that it does not go missing unnoticed.
UNREADABLE = {
    ".m4a", ".m4b", ".mp4", ".aac", ".webm", ".weba", ".mka", ".wma", ".amr", ".ac3", ".ape", ".wv",
    ".spx", ".tta", ".dsf", ".dff", ".3gp", ".mov", ".mkv", ".ra", ".gsm", ".shn",
}  # fmt: skip

#: Columns of a manifest beside ``path``; each may be absent or empty.
COLUMNS = ("split", "group", "duration_s", "offset", "size", "member", "start_s", "channel")

#: Largest numbers that some of them may hold.
MOST = {"offset": 1 << 62, "size": 1 << 62, "channel": 1 << 14}

LONGEST = 1e7  # seconds: no recording lasts for months

#: Columns that others use for parts of files; their names leave the unit open.
UNREAD = re.compile("(start|begin|end|stop|duration|length|seconds|offset)(_s|_sec|_time)?")


def is_audio(name: str) -> bool:
    """Return whether a name ends as audio that libsndfile reads."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def list_folder(folder: str, note: Note, level: int | None = None) -> Iterator[Recording]:
    """List every audio file below a folder, without hidden ones, which killed runs and systems
    leave.

    Args:
        note: called with audio files of formats that libsndfile cannot read.
        level: which folder on a file's way is its group: 0 is the first below ``folder``; by
            default all of them together. In one flat folder every file is a group of its own.
    """
    base = folder.rstrip("/")
    files = files_below(base)
    for name in files:
        if PurePosixPath(name).suffix.lower() in UNREADABLE:
            fix = "convert it to FLAC: ffmpeg -i FILE FILE.flac"
            note(name, f"is of a format that libsndfile cannot read; {fix}")
    paths = [name for name in files if is_audio(name)]
    flat = len({name.rpartition("/")[0] for name in paths}) < 2
    for name in paths:
        *folders, file = name[len(base) + 1 :].split("/")
        group = "/".join(folders) or "."
        if level is not None and level < len(folders):
            group = folders[level]
        elif flat or level is not None:
            group = PurePosixPath(file).stem
        yield Recording(name, UNKNOWN, group, "train")


def manifest_columns(manifest: str) -> list[str]:
    """Return the header of a CSV manifest, or raise ``DataError`` if it lacks ``path``."""
    with csv_table(manifest) as (columns, _):
        pass
    if "path" not in columns:
        fix = "its first line must name the columns: path, and if known split, group, duration_s"
        if len(columns) == 1 and (found := re.search("[;\t|]", columns[0])):
            fix = f"its columns are separated by {found[0]!r}; separate them by commas"
        raise DataError(manifest, "has no column 'path'", fix)
    return columns


def list_manifest(manifest: str, group: str | None = None) -> Iterator[Recording]:
    """Yield the rows of a CSV manifest as recordings, one at a time.

    Args:
        manifest: with a column ``path`` (relative to the manifest, absolute or a URL) and others of
            ``COLUMNS``; ``speaker`` stands in for ``group``.
        group: the column to take as group instead.

    Raises:
        DataError: naming the line that cannot be used.
    """
    columns = manifest_columns(manifest)
    if group is not None and group not in columns:
        raise DataError(manifest, f"has no column {group!r}", f"use one of {', '.join(columns)}")
    known = ("path", "speaker", *COLUMNS)
    others = {name: name.strip().lower() for name in columns if name not in (*known, group)}
    unread = [n for n, meant in others.items() if meant in known or UNREAD.fullmatch(meant)]
    if unread:
        text = f"{manifest}: ignored the columns {unread}; those that count are {', '.join(known)}"
        warnings.warn(text, stacklevel=2)
    with csv_table(manifest) as (_, rows):
        for line, row in rows:
            yield _from_row(manifest, line, row, group)


@contextmanager
def csv_table(table: str) -> Iterator[tuple[list[str], Iterator[tuple[int, dict[str, str]]]]]:
    """Open a CSV file or URL: its columns, and its rows with the numbers of their lines.

    Raises:
        DataError: if it cannot be read, a column stands twice, or a row has more or fewer fields.
    """
    try:
        with open_bytes(table) as file:
            reader = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""))
            columns = next(reader, [])
            twice = [name for name in columns if name and columns.count(name) > 1]
            if twice:
                raise DataError(table, f"has the column {twice[0]!r} twice", "keep one of them")
            yield columns, _rows(table, columns, reader)
    except (*PLACE_ERRORS, csv.Error) as error:
        raise DataError(table, f"cannot be read ({error})", "give a UTF-8 CSV file") from error


def _rows(table: str, columns: list[str], reader: Any) -> Iterator[tuple[int, dict[str, str]]]:
    for fields in filter(None, reader):  # without empty lines
        if len(fields) != len(columns):
            problem = f"has {len(fields)} fields, but the first line names {len(columns)} columns"
            fix = "leave unknown fields empty, with their commas, and quote a field with a comma"
            raise DataError(f"{table}, line {reader.line_num}", problem, fix)
        yield reader.line_num, dict(zip(columns, fields, strict=True))


def _from_row(manifest: str, line: int, row: Mapping[str, str], column: str | None) -> Recording:
    place = f"{manifest}, line {line}"
    name = row["path"]
    if not name:
        raise DataError(place, "names no path", "fill the column 'path' or delete the line")
    where = beside(manifest, name)
    group = row.get(column) if column else row.get("group") or row.get("speaker")
    member = row.get("member") or ""
    size = _number(place, row, "size", WHOLE_FILE)
    if member and size == WHOLE_FILE:
        raise DataError(place, "names a member but no size", "fill the column 'size'")
    offset = _number(place, row, "offset", 0)
    if offset and size == WHOLE_FILE:
        fix = "fill the column 'size', or give seconds as start_s"
        raise DataError(place, "has an offset in bytes but no size", fix)
    start = row.get("start_s")
    channel = row.get("channel")
    return Recording(
        where,
        _seconds(place, "duration_s", row.get("duration_s")),
        group or PurePosixPath(member or where).stem,
        _split(place, row.get("split")),
        offset,
        size,
        _seconds(place, "start_s", start) if start else None,
        _number(place, row, "channel", 0) if channel else None,
        member or (PurePosixPath(where).name if size != WHOLE_FILE else ""),
    )


def _split(place: str, text: str | None) -> Split:
    if text not in (None, "", "train", "valid"):
        raise DataError(place, f"split {text!r} is unknown", "write train or valid")
    return "valid" if text == "valid" else "train"


def _seconds(place: str, column: str, text: str | None) -> float:
    if not text:
        return UNKNOWN
    try:
        seconds = float(text)
    except ValueError as error:
        raise DataError(place, f"{column} {text!r} is not a number", "give seconds") from error
    if not 0 <= seconds < LONGEST:
        raise DataError(place, f"{column} {seconds:g} is not a length", "give seconds")
    return seconds


def _number(place: str, row: Mapping[str, str], column: str, default: int) -> int:
    text = row.get(column)
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and int(text[:20]) <= MOST[column]):
        fix = f"write a count from 0 to {MOST[column]}"
        if column == "offset":
            fix += "; seconds go into start_s"
        raise DataError(place, f"{column} {text[:40]!r} is out of range", fix)
    return int(text)
