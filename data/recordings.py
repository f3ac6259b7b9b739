"""Describe recordings, one by one and as a table that holds millions in little memory."""

from __future__ import annotations

import hashlib
import math
import os
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import numpy

Split = Literal["train", "valid"]
SPLITS: tuple[Split, ...] = ("train", "valid")
WHOLE_FILE = -1  # as a size in bytes: the recording is a file of its own
UNKNOWN = -1.0  # as a length in seconds
T = TypeVar("T")


@dataclass(frozen=True)
class Recording:
    """One recording: where its bytes are, its length, its group and its split."""

    where: str  # local path or URL; a ``Path`` is taken too
    seconds: float  # its length; 0 if it is not audio, ``UNKNOWN`` before it was measured
    group: str  # speaker or piece; whole groups are held out
    split: Split  # what it is for
    offset: int = 0  # in bytes, where it begins inside ``where``, which then is a tar
    size: int = WHOLE_FILE  # in bytes; ``WHOLE_FILE`` outside tars
    # Seconds into the audio, if it is only ``seconds`` of it; None if it is all of it.
    start: float | None = None
    channel: int | None = None  # the one to take; None mixes all to mono
    member: str = ""  # its name inside a tar
    source: int = 0  # number of the source that it comes from, among those read together

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", os.fspath(self.where))

    @property
    def path(self) -> Path:
        """Return the file's path, or the name inside a tar."""
        return Path(self.member or self.where)

    @property
    def place(self) -> str:
        """Return the name for errors and lists of problems."""
        inside = f"{self.where}!{self.member}" if self.member else self.where
        inside = inside if self.start is None else f"{inside}@{self.start:g}s"
        return inside if self.channel is None else f"{inside} (channel {self.channel})"

    @property
    def name(self) -> str:
        """Return a name that is unique within the group, wherever the data set lies."""
        return self.path.name if self.start is None else f"{self.path.name}@{self.start:g}"


class Recordings(Sequence[Recording]):
    """A list of recordings as columns: about 80 bytes each, a tenth of an object.

    Args:
        columns: arrays of equal length, as ``RecordingsBuilder`` makes them.
        names: file names one after the other; ``ends`` are where each one ends.
        folders: the part of ``where`` that many recordings share, by number.
        groups: by number.
        weights: of each source, how often its recordings are drawn in relation to others.
    """

    def __init__(
        self,
        columns: dict[str, numpy.ndarray[Any, Any]],
        names: bytes,
        folders: Sequence[str],
        groups: Sequence[str],
        weights: Sequence[float] = (1.0,),
    ) -> None:
        self.columns, self.names = columns, names
        self.folders, self.groups, self.weights = folders, groups, tuple(weights)

    def __len__(self) -> int:
        return len(self.columns["seconds"])

    @overload
    def __getitem__(self, index: int) -> Recording: ...
    @overload
    def __getitem__(self, index: slice) -> Recordings: ...
    def __getitem__(self, index: int | slice) -> Recording | Recordings:
        if isinstance(index, slice):
            return self.select(numpy.arange(len(self))[index])
        row = {name: column[index] for name, column in self.columns.items()}
        last, folder = int(row["last"]), self.folders[row["folder"]]
        name = os.fsdecode(self.names[last - int(row["letters"]) : last])
        size, start = int(row["size"]), float(row["start"])
        return Recording(
            folder if size != WHOLE_FILE else folder + name,
            float(row["seconds"]),
            self.groups[row["group"]],
            SPLITS[row["split"]],
            int(row["offset"]),
            size,
            None if math.isnan(start) else start,
            None if row["channel"] < 0 else int(row["channel"]),
            name if size != WHOLE_FILE else "",
            int(row["source"]),
        )

    def select(self, chosen: numpy.ndarray[Any, Any]) -> Recordings:
        """Choose recordings by numbers or by a mask; names are shared."""
        columns = {name: column[chosen] for name, column in self.columns.items()}
        return Recordings(columns, self.names, self.folders, self.groups, self.weights)

    def replaced(self, **columns: numpy.ndarray[Any, Any]) -> Recordings:
        """Return the table with other values in some columns."""
        return Recordings(
            self.columns | columns, self.names, self.folders, self.groups, self.weights
        )

    def of_split(self, split: Split) -> Recordings:
        return self.select(self.columns["split"] == SPLITS.index(split))

    @property
    def seconds(self) -> numpy.ndarray[Any, Any]:
        """Return the length of each recording in seconds."""
        return self.columns["seconds"]

    def weight_of_each(self) -> numpy.ndarray[Any, Any]:
        return numpy.asarray(self.weights)[self.columns["source"]]


class RecordingsBuilder:
    """Collect recordings into columns, one after the other."""

    _TYPES = {  # noqa: RUF012  # array's letters, which are numpy's too
        "seconds": "d", "group": "i", "split": "b", "offset": "q", "size": "q", "start": "d",
        "channel": "h", "source": "h", "folder": "i", "last": "q", "letters": "i",
    }  # fmt: skip

    def __init__(self) -> None:
        self._columns = {name: array(letter) for name, letter in self._TYPES.items()}
        self._names = bytearray()
        self._folders: dict[str, int] = {}
        self._groups: dict[str, int] = {}

    def add(self, recording: Recording) -> None:
        folder, name = recording.where, recording.member
        if recording.size == WHOLE_FILE:
            cut = folder.rfind("/") + 1
            folder, name = folder[:cut], folder[cut:]
        encoded = os.fsencode(name)
        self._names += encoded
        values = {
            "seconds": recording.seconds,
            "group": self._groups.setdefault(recording.group, len(self._groups)),
            "split": SPLITS.index(recording.split),
            "offset": recording.offset,
            "size": recording.size,
            "start": math.nan if recording.start is None else recording.start,
            "channel": -1 if recording.channel is None else recording.channel,
            "source": recording.source,
            "folder": self._folders.setdefault(folder, len(self._folders)),
            "last": len(self._names),
            "letters": len(encoded),
        }
        for column, value in values.items():
            self._columns[column].append(value)  # type: ignore[arg-type]

    def build(self, weights: Sequence[float] = (1.0,)) -> Recordings:
        columns = {name: numpy.array(column) for name, column in self._columns.items()}
        return Recordings(columns, bytes(self._names), list(self._folders),
                          list(self._groups), weights)  # fmt: skip


def as_table(recordings: Iterable[Recording]) -> Recordings:
    """Put any recordings into a table."""
    if isinstance(recordings, Recordings):
        return recordings
    builder = RecordingsBuilder()
    for recording in recordings:
        builder.add(recording)
    return builder.build()


def spread(items: Sequence[T], count: int) -> list[T]:
    """Choose so many items evenly, or all where there are fewer."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def key(recording: Recording) -> int:
    """Return 64 bits that identify a recording, wherever the data set lies."""
    text = os.fsencode(f"{recording.group}/{recording.name}")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


HELD_OUT = 0.05  # share of the groups, where a source names no split


def hold_out(
    recordings: Recordings,
    share: float = HELD_OUT,
    undecided: numpy.ndarray[Any, Any] | None = None,
) -> Recordings:
    """Put a share of the groups into the split ``valid``.

    A group is chosen by a hash of its name alone, so it stays where it is when others are added. If
    a share of few groups is none, the one with the lowest hash is held out, unless it is the only.

    Args:
        share: of the groups, 0 to 1; 0 holds none out.
        undecided: mask of the recordings that this decides on; by default all.
    """
    chosen = numpy.ones(len(recordings), bool) if undecided is None else undecided
    group = recordings.columns["group"]
    present = numpy.unique(group[chosen])
    if not share or len(present) < 2:
        return recordings
    # Numbers from 0 to 1 that look random.
    hashes = (hashlib.sha256(os.fsencode(recordings.groups[number])) for number in present)
    ranks = numpy.array([int(one.hexdigest()[:8], 16) / 16**8 for one in hashes])
    held = present[ranks < share]
    if not len(held):
        held = present[ranks.argmin()][None]
    split = recordings.columns["split"].copy()
    split[chosen & numpy.isin(group, held)] = SPLITS.index("valid")
    return recordings.replaced(split=split)
