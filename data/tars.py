"""Find audio inside tars by one pass over their headers; read it by random access later.

WebDataset shards and lhotse Shar keep recordings in plain tars: members of the same key belong
together (``a.flac``, ``a.json``). Where each member begins is kept in an index file in the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import soundfile

from segue.core.errors import AudioError, DataError, OutputError
from segue.core.files import atomic_path, cache_directory
from segue.data.manifest import Note, is_audio
from segue.data.places import PLACE_ERRORS, Section, open_bytes, stamp
from segue.data.recordings import Recording
from segue.sound.reader import SoundReader

INDEX_VERSION = 4
THREADS = 8  # tars that are looked through at a time
MOST_DESCRIPTION = 1 << 16  # bytes of a JSON member that is read
MOST_PADDING = 1 << 20  # bytes after the end of a tar that are looked at
GROUP_KEYS = ("group", "speaker", "speaker_id", "spk")
LENGTH_KEYS = ("duration", "duration_s")
#: Kinds of members that describe the next one.
_DESCRIBING = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip
MOST_NAMES = 1_000_000  # of a pattern
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")


@dataclass(frozen=True)
class Member:
    """One audio file of a tar; ``group`` is empty if its description names none."""

    name: str
    offset: int
    size: int
    seconds: float
    group: str


def list_tars(tars: list[str], note: Note) -> Iterator[Recording]:
    """List the audio in WebDataset shards; give members and tars of no use to ``note``.

    The group is what ``<key>.json`` calls group or speaker, or the folder part of the key, or the
    key itself.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        for tar, (members, problems) in zip(tars, pool.map(tar_index, tars), strict=True):
            for problem in problems:
                note(*problem)
            for member in members:
                path = PurePosixPath(member.name)
                group = member.group or str(path.parent if path.parent.name else path.stem)
                yield Recording(tar, member.seconds, group, "train",
                                member.offset, member.size, None, None, member.name)  # fmt: skip


def expand(pattern: str) -> list[str]:
    """Expand ``shards-{000..012}.tar`` and ``{a,b}.tar`` into names."""
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last, choices = match.groups()
    if choices is not None:
        parts = choices.split(",")
    else:
        if int(last) - int(first) >= MOST_NAMES:
            fix = "correct the larger number"
            raise DataError(pattern, f"{match[0]} stands for over {MOST_NAMES} names", fix)
        parts = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    before, after = pattern[: match.start()], pattern[match.end() :]
    if not parts:
        raise DataError(pattern, f"{match[0]} counts backwards", "write the smaller number first")
    return [name for part in parts for name in expand(before + part + after)]


def tar_index(tar: str) -> tuple[list[Member], list[tuple[str, str]]]:
    """Return the audio members of a tar and its problems, from the cache or by a pass over it."""
    problems: list[tuple[str, str]] = []
    try:
        changed = stamp(tar)
        name = hashlib.sha256(f"{INDEX_VERSION}|{tar}|{changed}".encode()).hexdigest()[:32]
        cached = cache_directory() / "tars" / f"{name}.json"
    except PLACE_ERRORS as error:
        return [], [(tar, f"cannot be read ({_reason(error)})")]
    if cached.is_file():
        with suppress(TypeError, *PLACE_ERRORS):
            return _load(cached), []
    members = _look_through(tar, lambda *problem: problems.append(problem))
    if not problems:
        _save(cached, members)
    return members, problems


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)


def _look_through(tar: str, note: Note) -> list[Member]:
    members: list[Member] = []
    try:
        with open_bytes(tar) as file:
            end = file.seek(0, os.SEEK_END)
            found, described, damage = _headers(file, tar, note)
            last = {info.name: info for info in found}
            for name, count in Counter(info.name for info in found).items():
                if count > 1:
                    note(f"{tar}!{name}", f"stands in it {count} times; the last one counts")
            for info in last.values():
                if info.offset_data + info.size > end:
                    note(f"{tar}!{info.name}", "is cut off: the tar ends before it")
                    damage = None
                    continue
                members.append(_member(file, info, described.get(_key(info.name), {})))
            if damage is not None:
                note(tar, damage)
    except PLACE_ERRORS as error:
        note(tar, f"cannot be read ({_reason(error)})")
    return members


class _Member(tarfile.TarInfo):
    """Refuse names and extended headers of gigabytes, which tarfile reads into memory."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _DESCRIBING and self.size > MOST_DESCRIPTION:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]


def _headers(
    file: IO[bytes], tar: str, note: Note
) -> tuple[list[tarfile.TarInfo], dict[str, dict[str, Any]], str | None]:
    """Return the audio members of a tar, the descriptions by key, and the problem if it has one."""
    found: list[tarfile.TarInfo] = []
    described: dict[str, dict[str, Any]] = {}
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=_Member) as archive:
            for info in archive:
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every one of them
                if info.name.endswith(".json") and info.size <= MOST_DESCRIPTION:
                    described[_key(info.name)] = _description(file, info)
                elif info.isfile() and is_audio(info.name):
                    found.append(info)
                elif (info.islnk() or info.issym()) and is_audio(info.name):
                    note(
                        f"{tar}!{info.name}",
                        "is a link; write the tar with tar -h --hard-dereference",
                    )
            file.seek(archive.offset)
            if file.read(MOST_PADDING).strip(b"\0"):
                problem = "goes on after its end, as tars do that were joined; take them apart"
                return found, described, problem
    except tarfile.TarError as error:
        return (
            found,
            described,
            f"is damaged ({error})" if found else "is not a plain tar; unpack it",
        )
    return found, described, None


def _key(name: str) -> str:
    """Return what members of one sample share: the name up to the first dot of its last part."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.split('.')[0]}" if folder else file.split(".")[0]


def _description(file: IO[bytes], info: tarfile.TarInfo) -> dict[str, Any]:
    at = file.tell()
    file.seek(info.offset_data)
    data = file.read(info.size)
    file.seek(at)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    known = value if isinstance(value, dict) else {}
    return {key: known[key] for key in (*GROUP_KEYS, *LENGTH_KEYS) if key in known}


def _member(file: IO[bytes], info: tarfile.TarInfo, described: dict[str, Any]) -> Member:
    group = next((str(described[key]) for key in GROUP_KEYS if described.get(key)), "")
    seconds = next((described[key] for key in LENGTH_KEYS if key in described), None)
    if not isinstance(seconds, (int, float)) or seconds <= 0:
        seconds = _measured(Section(file, info.offset_data, info.size))
    return Member(info.name, info.offset_data, info.size, float(seconds), group)


def _measured(file: Section) -> float:
    try:
        with SoundReader(file) as sound:  # type: ignore[arg-type]
            return sound.length / sound.rate
    except (AudioError, soundfile.LibsndfileError, RuntimeError, TypeError):
        return 0.0


def _save(path: Path, members: list[Member]) -> None:
    """Keep an index; if the cache cannot be written, the next run makes it again."""
    with suppress(OutputError), atomic_path(path) as temporary:
        temporary.write_text(json.dumps([[*vars(m).values()] for m in members]), encoding="utf-8")


def _load(path: Path) -> list[Member]:
    return [Member(*row) for row in json.loads(path.read_text(encoding="utf-8"))]
