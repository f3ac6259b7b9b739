"""Tokens of a data set on disk, written once and read by every stage's training.

A store is a directory of shards (safetensors) and ``store.json``, which names the tokenizers by
fingerprint. A shard depends only on its recordings, so a run that was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from safetensors import SafetensorError, safe_open
from torch import Tensor

from segue.core.audio import resample
from segue.core.checkpoint import save_tensors
from segue.core.data.audio_crops import decode_recording
from segue.core.data.manifest import Recording, Split
from segue.core.data.share import WHOLE, Share, row_generators
from segue.core.errors import AudioError, DataError
from segue.core.files import atomic_path, write_json
from segue.core.interfaces import StageBatch, Tokenizer, Tokens
from segue.core.progress import Progress
from segue.core.spec import ACOUSTIC, SliceSpec, StageSpec, TokenSpec

FORMAT_VERSION = 1
SHARD_RECORDINGS = 128
MAX_PIECE_SECONDS = 30.0


def common_samples(specs: Sequence[TokenSpec], rate: int) -> int:
    """Samples at ``rate`` after which every stream has a whole number of frames."""
    periods = [rate / spec.frame_rate for spec in specs]
    return math.lcm(*(period.numerator for period in periods))


def write_store(
    directory: Path,
    tokenizers: Mapping[str, Tokenizer],
    recordings: Mapping[Split, Sequence[Recording]],
    progress: Progress | None = None,
) -> Path:
    """Tokenize every recording of every split.

    Args:
        directory: of the store; shards that are complete are kept.
        tokenizers: by stream (``semantic``, ``acoustic``), sealed.
        recordings: by split.
        progress: called with the split, recordings done and recordings in all.

    Raises:
        DataError: if the directory holds tokens of other tokenizers or recordings.
    """
    header = {
        "format_version": FORMAT_VERSION,
        "streams": {name: tokenizer.spec.to_json() for name, tokenizer in tokenizers.items()},
        "recordings": {split: len(items) for split, items in recordings.items()},
        "digests": {split: _digest(items) for split, items in recordings.items()},
    }
    _check_header(directory, header)
    write_json(directory / "store.json", header)
    for split, items in recordings.items():
        for number, first in enumerate(range(0, len(items), SHARD_RECORDINGS)):
            shard = directory / f"{split}-{number:05d}.safetensors"
            if not shard.exists():
                skipped = _write_shard(shard, tokenizers, items[first : first + SHARD_RECORDINGS])
                if skipped:
                    _note_skipped(directory / "skipped.json", skipped)
            if progress is not None:
                progress(split, min(first + SHARD_RECORDINGS, len(items)), len(items))
    return directory


def _digest(recordings: Sequence[Recording]) -> str:
    """Tells one list of recordings from another; a data set may move as a whole."""
    names = [f"{recording.group}/{recording.path.name}" for recording in recordings]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def _check_header(directory: Path, header: dict[str, Any]) -> None:
    if (directory / "store.json").exists() and _read_header(directory) != header:
        raise DataError(
            str(directory),
            "holds tokens of other tokenizers or recordings",
            "choose another directory, or delete this one",
        )


def _read_header(directory: Path) -> dict[str, Any]:
    path = directory / "store.json"
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        version = header.get("format_version")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            str(path), f"cannot be read ({error})", "delete the directory and tokenize again"
        ) from error
    if version != FORMAT_VERSION:
        raise DataError(str(path), f"has format version {version!r}", "tokenize again")
    return dict(header)


def _write_shard(
    shard: Path,
    tokenizers: Mapping[str, Tokenizer],
    recordings: Sequence[Recording],
) -> dict[str, str]:
    """Write the tokens of some recordings; why those that cannot be used were left out."""
    skipped: dict[str, str] = {}
    pieces: dict[str, list[Tensor]] = defaultdict(list)
    kept: list[dict[str, Any]] = []
    for recording in recordings:
        try:
            ids = tokenize_recording(recording, tokenizers)
        except AudioError as error:
            skipped[str(recording.path)] = error.problem
            continue
        if ids is None:
            skipped[str(recording.path)] = "shorter than one frame"
            continue
        for name, tensor in ids.items():
            pieces[name].append(tensor)
        frames = {name: tensor.shape[1] for name, tensor in ids.items()}
        kept.append({"name": recording.path.name, "group": recording.group, "frames": frames})
    tensors = {name: torch.cat(parts, dim=1).to(torch.int32) for name, parts in pieces.items()}
    with atomic_path(shard) as temporary:
        save_tensors(tensors, temporary, metadata={"recordings": json.dumps(kept)})
    return skipped


def _note_skipped(path: Path, skipped: Mapping[str, str]) -> None:
    """Add to what earlier shards, of this run or one that was killed, left out."""
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_json(path, before | dict(skipped))


@torch.inference_mode()
def tokenize_recording(
    recording: Recording, tokenizers: Mapping[str, Tokenizer]
) -> dict[str, Tensor] | None:
    """Ids ``[Q, N]`` by stream, cut to a whole number of frames of each; None if there is none."""
    specs = [tokenizer.spec for tokenizer in tokenizers.values()]
    # At the codec's rate, as in a pipeline: a semantic tokenizer's own may be lower.
    rate = (tokenizers.get(ACOUSTIC) or next(iter(tokenizers.values()))).spec.sample_rate
    wave = decode_recording(recording, rate).float() / 32767
    unit = common_samples(specs, rate)
    wave = wave[: wave.shape[0] // unit * unit]
    if not wave.numel():
        return None
    piece = max(1, int(MAX_PIECE_SECONDS * rate) // unit) * unit
    found: dict[str, Tensor] = {}
    for name, tokenizer in tokenizers.items():
        found[name] = torch.cat([_encode(tokenizer, part, rate) for part in wave.split(piece)], 1)
    return found


def _encode(tokenizer: Tokenizer, wave: Tensor, rate: int) -> Tensor:
    own_rate = tokenizer.spec.sample_rate
    own = wave if own_rate == rate else resample(wave, rate, own_rate)
    tokens = tokenizer.encode(
        own[None].to(tokenizer.device), torch.tensor([own.shape[0]], device=tokenizer.device)
    )
    frames = round(wave.shape[0] / rate * tokenizer.spec.frame_rate)
    return tokens.ids[0, :, :frames].cpu()


class TokenStore:
    """Reads one split of a store into memory (a token takes four bytes)."""

    def __init__(self, directory: Path, split: Split) -> None:
        if not (directory / "store.json").is_file():
            raise DataError(str(directory), "is no token store", "run `segue tokenize` first")
        header = _read_header(directory)
        self.directory, self.split = directory, split
        self.streams = {name: TokenSpec.from_json(s) for name, s in header["streams"].items()}
        expected = -(-header["recordings"].get(split, 0) // SHARD_RECORDINGS)
        shards = sorted(directory.glob(f"{split}-*.safetensors"))
        if len(shards) != expected or not shards:
            raise DataError(
                str(directory),
                f"holds {len(shards)} of {expected} shards of the split {split!r}",
                "run `segue tokenize` again: it writes what is missing",
            )
        self.recordings: list[dict[str, Tensor]] = []
        self.groups: dict[str, list[int]] = defaultdict(list)
        for shard in shards:
            self._read(shard)
        if not self.recordings:
            raise DataError(
                str(directory), f"holds no token of the split {split!r}", "see its skipped.json"
            )

    def _read(self, shard: Path) -> None:
        try:
            with safe_open(shard, framework="pt") as file:
                kept = json.loads(file.metadata()["recordings"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self._add(kept, tensors)
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise DataError(
                str(shard), f"cannot be read ({error})", "delete it and run `segue tokenize` again"
            ) from error

    def _add(self, kept: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> None:
        position = dict.fromkeys(self.streams, 0)
        for entry in kept:
            rows = {}
            for name, frames in entry["frames"].items():
                rows[name] = tensors[name][:, position[name] : position[name] + frames]
                position[name] += frames
            self.groups[entry["group"]].append(len(self.recordings))
            self.recordings.append(rows)

    def check(self, stage: StageSpec) -> None:
        """Raise ``DataError`` unless the store holds what the stage learns from."""
        for part in (stage.target, *stage.given):
            spec = self.streams.get(part.stream)
            if spec is None:
                raise DataError(
                    str(self.directory),
                    f"holds no {part.stream} tokens",
                    "tokenize again with both",
                )
            if spec.fingerprint != part.fingerprint:
                raise DataError(
                    str(self.directory),
                    f"{part.stream} tokens are of tokenizer {spec.fingerprint}, "
                    f"stage {stage.name} is to learn those of {part.fingerprint}",
                    "tokenize again with the pipeline's own tokenizers",
                )


class TokenCrops:
    """Batches of aligned random crops of a store for one stage.

    Batch ``step`` depends on the seed and the step alone. A crop lies within one group (speaker,
    piece): recordings shorter than a crop are joined, in random order, to others of their group.
    """

    def __init__(
        self, store: TokenStore, stage: StageSpec, crop_seconds: float, batch_size: int, seed: int
    ) -> None:
        store.check(stage)
        self._store, self._stage = store, stage
        self._batch_size, self._seed = batch_size, seed
        # Crops are counted in frames of the slowest stream: every stream has whole frames there.
        self._slowest = min((stage.target, *stage.given), key=lambda part: part.frame_rate)
        self._crop = max(1, int(crop_seconds * self._slowest.frame_rate))
        self._groups = list(store.groups.values())
        stream = self._slowest.stream
        sizes = [sum(store.recordings[i][stream].shape[1] for i in g) for g in self._groups]
        self._weights = torch.tensor(sizes, dtype=torch.float)

    def batch(self, step: int, share: Share = WHOLE) -> StageBatch:
        """The crops of one step.

        Args:
            step: of the training.
            share: which rows of the batch are wanted.
        """
        rows = share.rows(self._batch_size)
        crops = []
        for random in row_generators(self._seed, step, rows, self._batch_size):
            chosen = int(torch.multinomial(self._weights, 1, generator=random))
            crops.append(self._crop_of(self._groups[chosen], random))
        parts = (self._stage.target, *self._stage.given)
        target, *given = (Tokens.stack([self._cut(crop, part) for crop in crops]) for part in parts)
        return StageBatch(target, tuple(given), self._ends(crops, target))

    def _crop_of(self, group: Sequence[int], random: torch.Generator) -> list[tuple[int, int, int]]:
        """Pieces (recording, first frame, last frame) that make up one crop."""
        order = [group[int(i)] for i in torch.randperm(len(group), generator=random)]
        stream = self._slowest.stream
        sizes = [self._store.recordings[i][stream].shape[1] for i in order]
        slack = max(0, sum(sizes) - self._crop)
        start = int(torch.randint(slack + 1, (1,), generator=random))
        pieces, left = [], self._crop
        for index, size in zip(order, sizes, strict=True):
            if start >= size:
                start -= size
                continue
            stop = min(size, start + left)
            pieces.append((index, start, stop))
            left -= stop - start
            start = 0
            if left == 0:
                break
        return pieces

    def _ends(
        self, crops: Sequence[Sequence[tuple[int, int, int]]], target: Tokens
    ) -> Bool[Tensor, "B N"]:
        """Where a frame is the last one of its recording: at joins, and at a crop's end only if
        the recording ends there too."""
        ends = torch.zeros(target.ids.shape[0], target.ids.shape[2], dtype=torch.bool)
        ratio = int(self._stage.target.frame_rate / self._slowest.frame_rate)
        for row, crop in enumerate(crops):
            frames = 0
            for index, first, last in crop:
                frames += (last - first) * ratio
                recording = self._store.recordings[index][self._slowest.stream]
                ends[row, frames - 1] = last == recording.shape[1]
        return ends

    def _cut(self, crop: Sequence[tuple[int, int, int]], part: SliceSpec) -> Tensor:
        ratio = int(part.frame_rate / self._slowest.frame_rate)
        rows = [
            self._store.recordings[index][part.stream][
                part.start : part.stop, first * ratio : last * ratio
            ]
            for index, first, last in crop
        ]
        return torch.cat(rows, dim=1).long()
