"""Read one shard of a token store, local or remote: its header, and its ids by place."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from segue.core.errors import DataError
from segue.core.files import atomic_path, cache_directory
from segue.core.memory import shortage
from segue.data.places import PLACE_ERRORS, is_url, open_bytes, read_range, size_of

METADATA = "segue"
MAPPED_AT_ONCE = 512  # shards; a process may map so many files at most (65,530 on Linux)
MOST_HEADER = 1 << 28  # bytes
COPIED_AT_ONCE = 1 << 24  # bytes
_TYPES = {"U16": "<u2", "I32": "<i4", "U8": "u1"}

Array = numpy.ndarray[Any, Any]


@dataclass(frozen=True)
class Block:
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
    """The header of a shard.

    Attributes:
        where: path or URL.
        blocks: its arrays by name.
        groups: names of the groups of its recordings, by number.
        problems: places of recordings that were left out, and why.
        digest: of the recordings it was made of.
    """

    where: str
    blocks: dict[str, Block]
    groups: list[str]
    problems: list[tuple[str, str]]
    digest: str

    def small(self, name: str) -> Array:
        """Read a short array whole."""
        block = self.blocks[name]
        problem = shortage(block.size)
        if problem is not None:
            raise DataError(self.where, problem, "tokenize into shorter shards")
        data = read_range(self.where, block.offset, block.size)
        return numpy.frombuffer(data, block.dtype).reshape(block.shape)


def read_shard_header(where: str) -> ShardHeader:
    """Read the header of a shard in the safetensors format; ids are not read.

    Raises:
        DataError: if it is cut off or no shard.
    """
    try:
        length = int.from_bytes(read_range(where, 0, 8), "little")
        if length > MOST_HEADER:
            raise ValueError(f"its header states a length of {length} bytes")
        tree = json.loads(read_range(where, 8, min(length, size_of(where))))
        described = json.loads(tree.pop("__metadata__")[METADATA])
        blocks = {
            name: Block(_TYPES[e["dtype"]], tuple(e["shape"]), 8 + length + e["data_offsets"][0])
            for name, e in tree.items()
        }
        if any(number < 0 for block in blocks.values() for number in (block.offset, *block.shape)):
            raise ValueError("a shape or an offset is negative")
        if size_of(where) != max(block.offset + block.size for block in blocks.values()):
            raise ValueError("it is cut off")
        problems = [(str(place), str(problem)) for place, problem in described["problems"]]
        return ShardHeader(where, blocks, described["groups"], problems, described["digest"])
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
