"""List the cuts that lhotse describes: a CutSet file, or a Shar directory with audio in tars.

Cuts are deserialised by lhotse (https://github.com/lhotse-speech/lhotse), one line at a time. Its
dozens of corpus recipes write such files.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from segue.core.errors import DataError
from segue.data.manifest import Note
from segue.data.places import PLACE_ERRORS, beside, files_below, is_url, open_bytes
from segue.data.recordings import Recording
from segue.data.tars import Member, tar_index

SHAR_AUDIO = ("recording", "target_recording", "audio")  # fields that hold what is heard
SAME_SECONDS = 1e-3


def is_shar(names: list[str]) -> bool:
    """Return whether files form a Shar directory: ``cuts.000000.jsonl.gz`` beside tars."""
    files = {PurePosixPath(name).name for name in names}
    return any(f.startswith("cuts.") for f in files) and any(f.endswith(".tar") for f in files)


def list_cuts(where: str, note: Note) -> Iterator[Recording]:
    """List the cuts of a CutSet file (``.jsonl`` or ``.jsonl.gz``) whose audio lies in files.

    The group is the speaker of the first supervision, or the recording the cut is of.

    Args:
        note: called with cuts that are not a stretch of a file, such as mixed ones.
    """
    for cut in _cuts(where):
        problem = _problem(cut)
        source = None if problem else _file_of(cut)
        if source is None:
            note(f"{where}!{getattr(cut, 'id', '?')}", problem or "its audio is in no file")
            continue
        path, channel = source
        # Relative to the working directory, as in lhotse, or to the file.
        here = not is_url(where) and Path(path).exists()
        yield Recording(
            path if here else beside(where, path),
            float(cut.duration),
            _group(cut),
            "train",
            start=None if _is_whole(cut) else float(cut.start),
            channel=channel,
        )


def list_shar(folder: str, note: Note) -> Iterator[Recording]:
    """List the cuts of a Shar directory, each with its member of the tar of the same number."""
    files = files_below(folder)
    by_name = {PurePosixPath(name).name: name for name in files}
    for name in sorted(n for n in by_name if n.startswith("cuts.") and ".jsonl" in n):
        number = name.split(".")[1]
        tar = next((by_name[t] for f in SHAR_AUDIO if (t := f"{f}.{number}.tar") in by_name), None)
        if tar is None:
            note(by_name[name], "has no tar of recordings beside it")
            continue
        found, problems = tar_index(tar)
        for problem_of_tar in problems:
            note(*problem_of_tar)
        members = by_cut(tar, found, note)
        for cut in _cuts(by_name[name]):
            member = members.get(str(cut.id))
            if member is None or _problem(cut):
                note(f"{by_name[name]}!{cut.id}", _problem(cut) or f"is not in {tar}")
                continue
            start = None if _is_whole(cut) else float(cut.start)
            place = member.offset, member.size, start, None, member.name
            yield Recording(tar, float(cut.duration), _group(cut), "train", *place)


def by_cut(tar: str, members: list[Member], note: Note) -> dict[str, Member]:
    """Return the members by the identifiers of their cuts, which may hold slashes and dots."""
    found: dict[str, Member] = {}
    for member in members:
        name = member.name.rpartition(".")[0].removeprefix("./")
        if name in found:
            note(f"{tar}!{member.name}", f"has the name of {found[name].name}, which is used")
        found.setdefault(name, member)
    return found


def _cuts(where: str) -> Iterator[Any]:
    """Yield the items of a file, one line at a time."""
    try:
        from lhotse.serialization import deserialize_item
    except ImportError as error:
        problem = f"needs lhotse ({error})"
        raise DataError(where, problem, 'pip install "segue[data]"') from error
    number = 0
    try:
        with open_bytes(where) as raw:
            file = gzip.GzipFile(fileobj=raw) if where.endswith(".gz") else raw
            for number, line in enumerate(file, start=1):  # noqa: B007  # named in the refusal
                if line.strip():
                    yield deserialize_item(json.loads(line))
    except (*PLACE_ERRORS, EOFError, KeyError, TypeError, AttributeError) as error:
        place = f"{where}, line {number}" if number else where
        problem = f"cannot be read as a CutSet ({error})"
        raise DataError(place, problem, "write it with lhotse's CutSet.to_file") from error


def _problem(cut: Any) -> str | None:
    """Return why a cut cannot be used, or None."""
    if not hasattr(cut, "recording") or not hasattr(cut, "start"):
        return f"is a {type(cut).__name__}, not a cut of one recording; save its audio first"
    if cut.recording is None:
        return "has no audio"
    if cut.recording.transforms:
        return "is transformed when it is loaded (speed, volume, ...); save its audio first"
    return None if cut.duration > 0 else "lasts no time"


def _file_of(cut: Any) -> tuple[str, int | None] | None:
    """Return the file or URL of the cut's channel, and which channel of that file it is."""
    channel = cut.channel if isinstance(cut.channel, int) else None
    for source in cut.recording.sources:
        if source.type not in ("file", "url"):
            continue
        if channel is None or len(source.channels) == 1 == len(cut.recording.sources):
            return str(source.source), None
        if channel in source.channels:
            index = source.channels.index(channel)
            return str(source.source), None if len(source.channels) == 1 else index
    return None


def _group(cut: Any) -> str:
    speakers = (supervision.speaker for supervision in cut.supervisions)
    return next((str(name) for name in speakers if name), str(cut.recording.id))


def _is_whole(cut: Any) -> bool:
    return cut.start == 0 and math.isclose(
        cut.duration, cut.recording.duration, abs_tol=SAME_SECONDS
    )
