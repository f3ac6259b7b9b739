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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segue.core.audio import resample
from segue.core.checkpoint import save_tensors
from segue.core.errors import AudioError
from segue.core.files import atomic_path, write_text
from segue.core.interfaces import Tokenizer
from segue.core.progress import Progress
from segue.core.spec import ACOUSTIC, common_samples
from segue.data.audio_files import decoded_blocks, in_pieces
from segue.data.recordings import Recording, Split
from segue.data.store_plan import Shard, plan_store
from segue.data.token_store import METADATA, read_shard_header
from segue.inference.promises import check_tokens

MAX_PIECE_SECONDS = 30.0
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
    go_on: Callable[[], bool] = lambda: True,
) -> Path:
    """Tokenize every recording of every split.

    Args:
        directory: of the store; shards that are complete are kept.
        tokenizers: by stream (``semantic``, ``acoustic``), sealed.
        recordings: by split.
        progress: called with ``tokens``, seconds of audio done and seconds in all, of this rank.
        rank: number of this process: it writes every ``world``-th shard.
        world: how many processes write, each with the same recordings.
        shard_seconds: of audio in a shard of a new store.
        go_on: asked before each shard.

    Raises:
        DataError: if the directory holds tokens of other tokenizers or recordings.
    """
    shards = plan_store(directory, tokenizers, recordings, shard_seconds)[rank::world]
    _sweep(directory)
    total, done = sum(shard.seconds for shard in shards), 0.0
    for shard in shards:
        if not go_on():
            break
        if not (directory / shard.name).exists():
            write_shard(directory / shard.name, tokenizers, shard)
        done += shard.seconds
        if progress is not None:
            progress("tokens", round(done), round(total))
    list_problems(directory)
    return directory


def write_shard(path: Path, tokenizers: Mapping[str, Tokenizer], shard: Shard) -> None:
    """Write the tokens of some recordings, and why others were left out."""
    problems: list[tuple[str, str]] = []
    pieces: dict[str, list[Tensor]] = defaultdict(list)
    kept: list[Recording] = []
    for recording in shard.recordings:
        try:
            ids = tokenize_recording(recording, tokenizers)
        except AudioError as error:
            problems.append((recording.place, error.problem))
            continue
        if ids is None:
            problems.append((recording.place, "shorter than one frame"))
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
    described = {"digest": shard.digest, "groups": groups, "problems": problems}
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


@torch.inference_mode()
def tokenize_recording(
    recording: Recording, tokenizers: Mapping[str, Tokenizer]
) -> dict[str, Tensor] | None:
    """Return ids ``[Q, N]`` by stream, cut to whole frames of each, or None if there are none."""
    specs = [tokenizer.spec for tokenizer in tokenizers.values()]
    # At the codec's rate, as in a pipeline: a semantic tokenizer's own may be lower.
    rate = (tokenizers.get(ACOUSTIC) or next(iter(tokenizers.values()))).spec.sample_rate
    unit = common_samples(specs, rate)
    # Pieces of whole frames of every stream: their tokens can be joined as if made at once.
    size = max(1, int(MAX_PIECE_SECONDS * rate) // unit) * unit
    found: dict[str, list[Tensor]] = {name: [] for name in tokenizers}
    for piece in in_pieces(decoded_blocks(recording, rate), size):
        wave = piece[: piece.shape[0] // unit * unit].float() / 32767
        for name, tokenizer in tokenizers.items() if wave.numel() else ():
            found[name].append(_encode(tokenizer, wave, rate))
    if not all(found.values()):
        return None
    return {name: torch.cat(parts, dim=1) for name, parts in found.items()}


def _encode(tokenizer: Tokenizer, wave: Tensor, rate: int) -> Tensor:
    own_rate = tokenizer.spec.sample_rate
    own = wave if own_rate == rate else resample(wave, rate, own_rate)
    lengths = torch.tensor([own.shape[0]], device=tokenizer.device)
    tokens = tokenizer.encode(own[None].to(tokenizer.device), lengths)
    check_tokens(tokenizer, tokens, tokenizer.spec, lengths)
    frames = round(wave.shape[0] / rate * tokenizer.spec.frame_rate)
    return tokens.ids[0, :, :frames].cpu()
