"""Read a token store: an index in memory, the ids on disk."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from jaxtyping import Int64
from torch import Tensor

from segue.core.errors import DataError
from segue.core.files import atomic_path, cache_directory
from segue.core.memory import shortage
from segue.core.spec import StageSpec, TokenSpec
from segue.data.places import (
    PLACE_ERRORS,
    exists,
    files_below,
    is_url,
    open_bytes,
    read_range,
    size_of,
)
from segue.data.recordings import Split
from segue.data.store_plan import HEADER, read_header, shard_names

METADATA = "segue"
MAPPED_AT_ONCE = 512  # shards; a process may map so many files at most (65,530 on Linux)
MOST_HEADER = 1 << 28  # bytes
COPIED_AT_ONCE = 1 << 24  # bytes
_TYPES = {"U16": "<u2", "I32": "<i4", "U8": "u1"}

Array = numpy.ndarray[Any, Any]


@dataclass(frozen=True)
class FileArray:
    """The place of an array in a file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Return the size in bytes."""
        return math.prod(self.shape) * numpy.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class ShardHeader:
    """The header of a shard."""

    where: str  # path or URL
    blocks: dict[str, FileArray]  # its arrays by name
    groups: list[str]  # names of the groups of its recordings, by number
    problems: list[tuple[str, str]]  # places of recordings that were left out, and why
    digest: str  # of the recordings it was made of
    seconds: float | None  # of these recordings, as planned; None in older stores

    def small(self, name: str) -> Array:
        """Read a short array whole."""
        block = self.blocks[name]
        problem = shortage(block.size)
        if problem is not None:
            raise DataError(self.where, problem, "tokenize into shorter shards")
        data = read_range(self.where, block.offset, block.size)
        return numpy.frombuffer(data, block.dtype).reshape(block.shape)


def read_shard_header(where: str) -> ShardHeader:
    """Read the safetensors header of a shard, not its ids, or raise ``DataError``."""
    try:
        length = int.from_bytes(read_range(where, 0, 8), "little")
        if length > MOST_HEADER:
            raise ValueError(f"its header states a length of {length} bytes")
        tree = json.loads(read_range(where, 8, min(length, size_of(where))))
        described = json.loads(tree.pop("__metadata__")[METADATA])
        blocks = {
            name: FileArray(
                _TYPES[e["dtype"]], tuple(e["shape"]), 8 + length + e["data_offsets"][0]
            )
            for name, e in tree.items()
        }
        if any(number < 0 for block in blocks.values() for number in (block.offset, *block.shape)):
            raise ValueError("a shape or an offset is negative")
        if size_of(where) != max(block.offset + block.size for block in blocks.values()):
            raise ValueError("it is cut off")
        problems = [(str(place), str(problem)) for place, problem in described["problems"]]
        made_of = described["digest"], described.get("seconds")
        return ShardHeader(where, blocks, described["groups"], problems, *made_of)
    except (*PLACE_ERRORS, KeyError, TypeError, AttributeError) as error:
        raise unreadable(where, error) from error


def unreadable(where: str, error: BaseException) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(where, "is missing", "put it back, or run `segue tokenize` again")
    reason = getattr(error, "strerror", None) or error
    fix = "repair it, or delete it and run `segue tokenize` again"
    return DataError(where, f"cannot be read ({reason})", fix)


class MappedShards:
    """Map arrays of shards into memory; only what is looked at is read from disk."""

    def __init__(self) -> None:
        self._maps: OrderedDict[tuple[str, str], Array] = OrderedDict()

    def array(self, header: ShardHeader, name: str) -> Array:
        """Return an array that lives on disk; a remote shard is fetched once."""
        key = (header.where, name)
        if key not in self._maps:
            block = header.blocks[name]
            try:
                path = local_copy(header.where)
                self._maps[key] = numpy.memmap(path, block.dtype, "r", block.offset, block.shape)
            except PLACE_ERRORS as error:
                raise unreadable(header.where, error) from error
            if len(self._maps) > MAPPED_AT_ONCE:
                self._maps.popitem(last=False)
        self._maps.move_to_end(key)
        return self._maps[key]


def local_copy(where: str) -> Path:
    """Return a local file with the bytes of a path or URL; fetched files stay in the cache."""
    if not is_url(where):
        return Path(where)
    folder, _, name = where.rpartition("/")
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    path = cache_directory() / "stores" / digest / name
    if not path.is_file() or path.stat().st_size != size_of(where):
        with atomic_path(path) as temporary, open_bytes(where) as source, temporary.open("wb") as t:
            while data := source.read(COPIED_AT_ONCE):
                t.write(data)
    return path


MOST_NAMED = 5


def missing_shards(directory: Path | str) -> list[str]:
    """Return the files that a store lacks, of all splits."""
    header = read_header(str(directory))
    names = [name for split in header["shards"] for name in shard_names(header, split)]
    return _missing(str(directory), names)


def _missing(directory: str, names: list[str]) -> list[str]:
    there = {name.rpartition("/")[2] for name in files_below(directory)}
    return [name for name in names if name not in there]


class TokenStore:
    """Read one split of a store. Ids are mapped from disk; the index takes 24 bytes a recording.

    Attributes:
        streams: what its tokens are, by stream.
        frames: ``[R]`` frames of each recording in the stream ``counted_in``.
        group: ``[R]`` number of the group of each recording.
        groups: names of the groups.
        weights: ``[R]`` of the recordings' sources.
    """

    def __init__(self, directory: Path | str, split: Split) -> None:
        self.directory, self.split = str(directory), split
        if not exists(f"{directory}/{HEADER}"):
            raise DataError(str(directory), "is not a token store", "run `segue tokenize` first")
        header = read_header(self.directory)
        self.streams = {name: TokenSpec.from_json(s) for name, s in header["streams"].items()}
        self.counted_in = next(iter(self.streams))
        names = shard_names(header, split)
        self._check_complete(names)
        self._shards = [read_shard_header(f"{self.directory}/{name}") for name in names]
        self._maps = MappedShards()
        self._index(header["weights"])
        if not len(self.frames):
            raise DataError(
                self.directory, f"holds no token of the split {split!r}", "see its problems.csv"
            )

    def _check_complete(self, names: list[str]) -> None:
        missing = _missing(self.directory, names)
        if missing or not names:
            some = ", ".join(missing[:MOST_NAMED]) + (", ..." if missing[MOST_NAMED:] else "")
            raise DataError(
                self.directory,
                f"holds {len(names) - len(missing)} of {len(names)} shards of the split "
                f"{self.split!r}" + (f" (missing: {some})" if some else ""),
                "run `segue tokenize` again, on each rank: it writes what is missing",
            )

    def _index(self, weights: list[float]) -> None:
        numbers: dict[str, int] = {}
        columns: list[tuple[Array, ...]] = []
        for number, shard in enumerate(self._shards):
            try:
                frames, group, source = (
                    shard.small(f"recording.{name}") for name in ("frames", "group", "source")
                )
                self._check_arrays(shard, int(frames.sum()))
            except (*PLACE_ERRORS, KeyError) as error:
                raise unreadable(shard.where, error) from error
            known = [numbers.setdefault(name, len(numbers)) for name in shard.groups]
            own = numpy.array(known, numpy.int32)[group]
            begins = numpy.cumsum(frames, dtype=numpy.int64) - frames
            columns.append((frames, own, source, numpy.full_like(frames, number), begins))
        joined = [numpy.concatenate(c) for c in zip(*columns, strict=True)]
        self.frames, self.group, source, self._shard, self._begin = joined
        self.weights = numpy.asarray(weights)[source]
        self.groups = list(numbers)

    def _check_arrays(self, shard: ShardHeader, frames: int) -> None:
        for name, spec in self.streams.items():
            if not frames and name not in shard.blocks:
                continue  # of a shard whose recordings were all left out
            wanted = (spec.num_levels, int(self.ratio(name) * frames))
            if shard.blocks[name].shape != wanted:
                raise ValueError(f"{name} is {shard.blocks[name].shape}, not {wanted}")

    def __len__(self) -> int:
        """Return the number of recordings."""
        return len(self.frames)

    def ratio(self, stream: str) -> Any:
        """Return the frames of a stream for each frame of ``counted_in``."""
        return self.streams[stream].frame_rate / self.streams[self.counted_in].frame_rate

    def frames_of(self, stream: str) -> Array:
        """Return ``[R]`` frames of each recording in a stream."""
        ratio = self.ratio(stream)
        return self.frames.astype(numpy.int64) * ratio.numerator // ratio.denominator

    def read(
        self, recording: int, stream: str, levels: slice, first: int, last: int
    ) -> Int64[Tensor, "Q N"]:
        """Read frames ``first .. last - 1`` of some levels of a recording."""
        header = self._shards[int(self._shard[recording])]
        begin = int(int(self._begin[recording]) * self.ratio(stream))
        ids = self._maps.array(header, stream)[levels, begin + first : begin + last]
        return torch.from_numpy(ids.astype(numpy.int64))

    def names(self) -> Iterator[str]:
        """Yield the names of the recordings, shard by shard."""
        for shard in self._shards:
            yield from os.fsdecode(shard.small("recording.names").tobytes()).split("\0")[:-1]

    def check(self, stage: StageSpec) -> None:
        """Raise ``DataError`` unless the store holds what the stage learns from."""
        for part in (stage.target, *stage.given):
            spec = self.streams.get(part.stream)
            if spec is None:
                raise DataError(
                    self.directory,
                    f"holds no {part.stream} tokens",
                    "tokenize again with both",
                )
            if spec.fingerprint != part.fingerprint:
                raise DataError(
                    self.directory,
                    f"{part.stream} tokens are of tokenizer {spec.fingerprint}, "
                    f"stage {stage.name} is to learn those of {part.fingerprint}",
                    "tokenize again with the pipeline's own tokenizers",
                )
