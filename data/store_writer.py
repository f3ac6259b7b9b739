"""Write a token store, shard by shard: sharded by rank, resumable, atomic.

A shard is a safetensors file: ids ``[Q, N]`` of each stream one recording after the other (uint16
where the codebook fits), and for each recording its length, group, source and name. Its bytes
depend on its recordings and the tokenizers alone.
"""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segue.core.checkpoint import save_tensors
from segue.core.errors import DataError
from segue.core.files import atomic_path, write_text
from segue.core.interfaces import Tokenizer
from segue.core.progress import Progress
from segue.data.recordings import Recording, Split
from segue.data.store_plan import Shard, plan_store
from segue.data.token_store import METADATA, read_shard_header
from segue.data.tokenizing import Tokenize, tokenizing

STALE_SECONDS = 3600.0  # a temporary file as old was left by a run that was killed
PROBLEMS = "problems.csv"


def write_store(
    directory: Path,
    tokenizers: Mapping[str, Tokenizer],
    recordings: Mapping[Split, Sequence[Recording]],
    progress: Progress | None = None,
    *,
    rank: int = 0,
    world: int = 1,
    shard_seconds: float | None = None,
    workers: int = 1,
) -> Path:
    """Tokenize every recording of every split.

    Args:
        directory: of the store; shards that are complete are kept.
        tokenizers: by stream (``semantic``, ``acoustic``), sealed.
        progress: called with ``tokens``, seconds of audio done and seconds in all, of this rank.
        rank: number of this process: it writes every ``world``-th shard.
        world: how many processes write, each with the same recordings.
        shard_seconds: of audio in a shard of a new store.
        workers: processes that share the recordings of each shard; with more than one, the
            tokenizers must be on the CPU.

    Raises:
        DataError: if the directory holds tokens of other tokenizers or recordings, or a process
            dies.
    """
    shards = plan_store(directory, tokenizers, recordings, shard_seconds)[rank::world]
    _sweep(directory)
    total, done = sum(shard.seconds for shard in shards), 0.0
    with tokenizing(tokenizers, workers) as tokenize:
        for shard in shards:
            if not _stays(directory / shard.name, shard):
                write_shard(directory / shard.name, tokenizers, shard, tokenize)
            done += shard.seconds
            if progress is not None:
                progress("tokens", round(done), round(total))
    list_problems(directory)
    return directory


def _stays(path: Path, shard: Shard) -> bool:
    """Return whether a shard is there, and no recording that did not exist has come back.

    Raises:
        DataError: if its recordings have other lengths than when it was written.
    """
    if not path.exists():
        return False
    header = read_shard_header(str(path))
    gone = [place for place, problem in header.problems if "does not exist" in problem]
    if any(Path(place).exists() for place in gone):
        return False
    changed = header.seconds is not None and abs(header.seconds - shard.seconds) > 0.01
    if changed and not header.problems:
        problem = "holds tokens of recordings that have other lengths now"
        raise DataError(str(path), problem, "choose another directory, or delete the file")
    return True


def write_shard(
    path: Path, tokenizers: Mapping[str, Tokenizer], shard: Shard, tokenize: Tokenize
) -> None:
    """Write the tokens of some recordings, and why others were left out."""
    problems: list[tuple[str, str]] = []
    pieces: dict[str, list[Tensor]] = defaultdict(list)
    kept: list[Recording] = []
    for recording, ids in zip(shard.recordings, tokenize(shard.recordings), strict=True):
        if isinstance(ids, str):
            problems.append((recording.place, ids))
            continue
        kept.append(recording)
        for name, tensor in ids.items():
            pieces[name].append(tensor)
    groups = sorted({recording.group for recording in kept})
    numbers = {group: number for number, group in enumerate(groups)}
    first = next(iter(tokenizers))
    names = list(os.fsencode("".join(f"{r.name}\0" for r in kept)))  # bytes, each ended by a zero
    tensors = {
        name: torch.cat(parts, dim=1).to(
            torch.uint16 if tokenizers[name].spec.codebook_size <= 2**16 else torch.int32
        )
        for name, parts in pieces.items()
    } | {
        "recording.frames": torch.tensor([p.shape[1] for p in pieces[first]], dtype=torch.int32),
        "recording.group": torch.tensor([numbers[r.group] for r in kept], dtype=torch.int32),
        "recording.source": torch.tensor([r.source for r in kept], dtype=torch.int32),
        "recording.names": torch.tensor(names, dtype=torch.uint8),
    }
    described = {
        "digest": shard.digest,
        "groups": groups,
        "problems": problems,
        "seconds": shard.seconds,
    }
    with atomic_path(path) as temporary:
        # One key: several would be written in any order.
        save_tensors(tensors, temporary, metadata={METADATA: json.dumps(described)})


def _sweep(directory: Path) -> None:
    """Remove what killed runs left; younger files may be another rank's."""
    for path in directory.glob(".tmp-*"):
        try:
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()
        except OSError:
            continue


def list_problems(directory: Path) -> int:
    """Write ``problems.csv`` with the recordings that all shards left out; return their number."""
    rows: list[Any] = []
    for path in sorted(directory.glob("[!.]*.safetensors")):  # hidden ones are being written
        rows += read_shard_header(str(path)).problems
    target = directory / PROBLEMS
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("path", "problem"), *rows])
    data = text.getvalue().encode("utf-8", "backslashreplace").decode()
    if rows or target.exists():
        write_text(target, data)
    return len(rows)
