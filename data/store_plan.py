"""Plan a token store: which recordings go into which shard.

The plan only grows. A recording keeps its shard when others are added, whatever the order they are
listed in and however many ranks write, so a shard that is complete is never written again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from segue.core.errors import DataError
from segue.core.files import atomic_path, write_json
from segue.core.interfaces import Tokenizer
from segue.core.spec import TokenSpec
from segue.data.epochs import mixed
from segue.data.places import PLACE_ERRORS, read_text
from segue.data.recordings import Recording, Recordings, Split, as_table, key

FORMAT_VERSION = 2
HEADER = "store.json"
LEAST_SHARD_SECONDS = 600.0  # so that little work is lost when a run is killed
MOST_SHARDS = 10_000  # at most about so many files

Keys = numpy.ndarray[Any, numpy.dtype[numpy.uint64]]


@dataclass(frozen=True)
class Shard:
    """One file of a store and the recordings whose tokens it holds."""

    name: str
    split: Split
    recordings: Recordings
    digest: str

    @property
    def seconds(self) -> float:
        return float(self.recordings.seconds.sum())


def plan_store(
    directory: Path,
    tokenizers: Mapping[str, Tokenizer],
    recordings: Mapping[Split, Sequence[Recording]],
    shard_seconds: float | None = None,
) -> list[Shard]:
    """Make a store's plan or add new recordings to it, and keep it in the directory.

    Args:
        shard_seconds: of audio in a shard, of a new store; by default ten minutes, more for a data
            set that would fill thousands of shards.

    Raises:
        DataError: if the store was made by other tokenizers, or recordings that it holds are gone.
    """
    tables = {split: as_table(items) for split, items in recordings.items()}
    streams = {name: tokenizer.spec.to_json() for name, tokenizer in tokenizers.items()}
    header: dict[str, Any]
    if (directory / HEADER).exists():
        header = read_header(str(directory))
        _check_streams(directory, header["streams"], streams)
    else:
        total = sum(float(table.seconds.sum()) for table in tables.values())
        size = shard_seconds or max(LEAST_SHARD_SECONDS, total / MOST_SHARDS)
        header = {"streams": streams, "shard_seconds": size, "shards": {}}
    shards: list[Shard] = []
    for split, table in tables.items():
        shards += _plan_split(directory, header, split, table)
    weights = next((list(table.weights) for table in tables.values()), [1.0])
    new = {"format_version": FORMAT_VERSION} | header | {"weights": weights}
    if not (directory / HEADER).exists() or read_header(str(directory)) != new:
        write_json(directory / HEADER, new)
    return shards


def shard_names(header: Mapping[str, Any], split: str) -> list[str]:
    """Return the files that hold a split's tokens once all are written."""
    count = len(header["shards"].get(split, ()))
    return [f"{split}-{number:05d}.safetensors" for number in range(count)]


def has_split(directory: Path, split: str) -> bool:
    """Return whether a store holds, or will hold, recordings of a split."""
    there = (directory / HEADER).exists()
    return there and bool(read_header(str(directory))["shards"].get(split))


def read_header(directory: str) -> dict[str, Any]:
    """Read ``store.json``, or raise ``DataError`` if it cannot be read or is of another version."""
    path = f"{directory}/{HEADER}"
    try:
        header = json.loads(read_text(path))
        version = header.get("format_version")
    except (*PLACE_ERRORS, AttributeError) as error:
        raise DataError(
            path, f"cannot be read ({error})", "delete the directory and tokenize again"
        ) from error
    if version != FORMAT_VERSION:
        raise DataError(
            path,
            f"has format version {version!r}, not {FORMAT_VERSION}",
            "delete the directory and tokenize again",
        )
    return dict(header)


def _check_streams(directory: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    if old == new:
        return
    made, given = (
        ", ".join(f"{name} {TokenSpec.from_json(spec).fingerprint}" for name, spec in s.items())
        for s in (old, new)
    )
    raise DataError(
        str(directory),
        f"holds tokens of other tokenizers ({made}; these are {given})",
        "choose another directory, or delete this one",
    )


def _plan_split(
    directory: Path, header: dict[str, Any], split: Split, table: Recordings
) -> list[Shard]:
    """Plan the shards of one split; new ones are added to the header."""
    counts: list[int] = header["shards"].setdefault(split, [])
    path = directory / f"{split}-keys.npy"
    old = _load_keys(path, sum(counts))
    new = unique_keys(table)
    order = numpy.argsort(new, kind="stable")
    found = (
        order[numpy.searchsorted(new, old, sorter=order).clip(max=max(0, len(new) - 1))]
        if len(new)
        else numpy.zeros(0, numpy.int64)
    )
    lost = len(old) if not len(new) else int((new[found] != old).sum())
    if lost:
        raise DataError(
            str(directory),
            f"holds tokens of {lost} recordings of the split {split!r} that the data lacks now",
            "choose another directory, or delete this one",
        )
    rest = numpy.nonzero(~numpy.isin(new, old))[0]
    if len(rest):
        counts += _cut(table.seconds[rest], float(header["shard_seconds"]))
        with atomic_path(path) as temporary:
            numpy.save(temporary, numpy.concatenate([old, new[rest]]))
    positions = numpy.concatenate([found[: len(old)], rest])
    planned = table.select(positions)
    edges = numpy.cumsum([0, *counts])
    return [
        Shard(name, split, planned[first:last], digest(new[positions[first:last]]))
        for name, first, last in zip(shard_names(header, split), edges, edges[1:], strict=False)
    ]


def digest(keys: Keys) -> str:
    """Return a digest of the recordings of a shard."""
    return f"{mixed(*keys.tolist()):016x}"


def unique_keys(recordings: Recordings) -> Keys:
    """Return a key for each recording; those with the same group and name are numbered."""
    keys = numpy.fromiter((key(r) for r in recordings), numpy.uint64, len(recordings))
    order = numpy.argsort(keys, kind="stable")
    ordered = keys[order]
    for place in numpy.nonzero(ordered[1:] == ordered[:-1])[0]:
        before = int(numpy.searchsorted(ordered, ordered[place], side="left"))
        repeat = int(place) + 1 - before
        # Recordings of one name need keys that do not depend on the order they are listed in.
        keys[order[place + 1]] = mixed(int(ordered[place]), repeat)
    return keys


def _load_keys(path: Path, count: int) -> Keys:
    if not count:
        return numpy.zeros(0, numpy.uint64)
    try:
        keys: Keys = numpy.load(path)
    except (OSError, ValueError) as error:
        fix = "delete the directory and tokenize again"
        raise DataError(str(path), f"cannot be read ({error})", fix) from error
    if len(keys) < count:  # what is beyond was planned by a run that was killed
        raise DataError(str(path), "is too short", "delete the directory and tokenize again")
    return keys[:count]


def _cut(seconds: numpy.ndarray[Any, Any], most: float) -> list[int]:
    """Return how many recordings make up each shard, in order."""
    counts, filled = [0], 0.0
    for length in seconds.tolist():
        if counts[-1] and filled + length > most:
            counts.append(0)
            filled = 0.0
        counts[-1] += 1
        filled += length
    return counts
