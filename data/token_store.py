"""Read a token store: an index in memory, the ids on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import torch
from jaxtyping import Int64
from torch import Tensor

from segue.core.errors import DataError
from segue.core.spec import StageSpec, TokenSpec
from segue.data.places import PLACE_ERRORS, exists, files_below
from segue.data.recordings import Split
from segue.data.store_file import MappedShards, ShardHeader, read_shard_header, unreadable
from segue.data.store_plan import HEADER, read_header, shard_names

MOST_NAMED = 5

Array = numpy.ndarray[Any, Any]


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
        counts: Array = self.frames.astype(numpy.int64) * ratio.numerator // ratio.denominator
        return counts

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
