"""Make a detector's examples: real audio, the same through a codec, and generated continuations.

The codec is tried with each number of levels. All examples are cut from the same place of the same
recordings, at one rate, equally long, as 16-bit samples, so that they differ only in the sound.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int16
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from segue.core.audio import SILENCE, Audio, resample
from segue.core.checkpoint import save_tensors
from segue.core.errors import AudioError, CheckpointError, DataError
from segue.core.files import atomic_path, write_json
from segue.core.fingerprints import add_tensors
from segue.core.progress import Progress
from segue.core.yaml_files import parse_yaml
from segue.data.audio_files import read_recording, to_16_bit
from segue.data.recordings import UNKNOWN, Recording, spread
from segue.inference.pipeline import Pipeline

PLAN, CLIPS = "examples.json", "clips"
TESTED_SHARE = 5  # every fifth group of those a pipeline learnt from is kept for the test
MOST_CROPS = 8  # of one recording
APART_SECONDS = 10.0  # between the starts of two crops of one recording
TRIM = 10 ** (-40 / 20)  # of the peak: what is quieter at either end is cut off


@dataclass(frozen=True)
class ExamplePlan:
    """Settings for making examples."""

    # Length of the prompt from each recording; it is not part of the example.
    prompt_seconds: float = 1.5
    seconds: float = 3.5  # length of an example
    items: int = 400  # examples of each origin, at most
    batch: int = 8  # prompts that are continued together
    seed: int = 0  # of the first continuation; each has its own


@dataclass(frozen=True)
class Clip:
    """One recording's examples."""

    # ``[2 + Q, T]``: real, through the codec's first 1 to Q levels, generated.
    waves: Int16[Tensor, "R T"]
    group: str  # speaker or piece
    tested: bool  # kept for the test; whole groups are
    unseen: bool  # the pipeline itself has not learnt from the group
    pipeline: str = ""  # name of the one that generated

    def of(self, origin: str) -> Int16[Tensor, "R T"]:
        """Return the examples of one of ``ORIGINS``; of ``coded`` one for each level count."""
        last = self.waves.shape[0] - 1
        start, stop = {"real": (0, 1), "coded": (1, last), "generated": (last, last + 1)}[origin]
        return self.waves[start:stop]


def chosen_crops(recordings: Sequence[Recording], plan: ExamplePlan) -> list[Recording]:
    """Choose long parts of recordings, up to a third held out, or raise ``DataError``."""
    needed = plan.prompt_seconds + plan.seconds
    crops: list[list[Recording]] = [[], []]
    for recording in recordings:
        known = recording.seconds != UNKNOWN
        for place in range(MOST_CROPS if known else 1):
            start = place * APART_SECONDS
            if known and start + needed > recording.seconds:
                break
            first = (recording.start or 0.0) + start
            crop = replace(recording, start=first, seconds=needed)
            crops[recording.split == "train"].append(crop)
    held = spread(crops[0], plan.items // 3)
    chosen = held + spread(crops[1], plan.items - len(held))
    if not chosen:
        raise DataError("recordings", f"none lasts {needed:g} s", "ask for shorter examples")
    return chosen


def make_examples(
    pipeline: Pipeline,
    recordings: Sequence[Recording],
    plan: ExamplePlan,
    directory: Path,
    progress: Progress | None = None,
) -> list[Clip]:
    """Make the examples of every chosen crop once and keep them in ``directory``; a stopped run
    goes on.

    Raises:
        DataError: if the directory holds examples of something else, or no crop can be used.
    """
    crops = chosen_crops(recordings, plan)
    _claim(directory, pipeline, crops, plan)
    parts = range(0, len(crops), plan.batch)
    clips: list[Clip] = []
    for done, start in enumerate(parts, start=1):
        path = directory / CLIPS / f"{start:06d}.safetensors"
        if not path.is_file():
            waves, kept = _made(pipeline, crops[start : start + plan.batch], plan, start)
            _keep(path, waves, kept)
        clips += _read(path, crops[start : start + plan.batch], pipeline.config.name)
        if progress is not None:
            progress("examples", done, len(parts))
    if not clips:
        raise DataError("recordings", "none can be used", "check the data")
    return clips


def _claim(
    directory: Path, pipeline: Pipeline, crops: Sequence[Recording], plan: ExamplePlan
) -> None:
    """Note what the examples are made of, or refuse a directory with others."""
    names = "\n".join(f"{crop.group}/{crop.name}" for crop in crops)
    description = {
        "pipeline": pipeline.config.name,
        "weights": _fingerprint(pipeline),
        "sampling": {s.name: s.sampling.model_dump(mode="json") for s in pipeline.config.stages},
        "crops": hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()[:16],
        "levels": pipeline.codec.spec.num_levels,
        **plan.__dict__,
    }
    path = directory / PLAN
    if path.is_file():
        if parse_yaml(path.read_text(encoding="utf-8")) != description:
            raise DataError(
                str(directory),
                "holds examples of another pipeline, other data or other options",
                "name a new directory",
            )
        return
    write_json(path, description)


def _fingerprint(pipeline: Pipeline) -> str:
    """Return 16 digits that identify a pipeline's weights."""
    digest = hashlib.sha256()
    for _, part in sorted(pipeline.parts.items()):
        add_tensors(digest, part.state_dict())
    return digest.hexdigest()[:16]


def _made(
    pipeline: Pipeline, crops: Sequence[Recording], plan: ExamplePlan, start: int
) -> tuple[Int16[Tensor, "B R T"], list[int]]:
    """Make the examples of the crops that can be read; return them and their numbers."""
    read = {i: audio for i, crop in enumerate(crops) if (audio := _audio(pipeline, crop, plan))}
    length, levels = round(plan.seconds * pipeline.sample_rate), pipeline.codec.spec.num_levels
    rows, kept = [torch.zeros(0, 2 + levels, length, dtype=torch.int16)], []
    if not read:
        return rows[0], []
    cut = round(plan.prompt_seconds * pipeline.sample_rate)
    made = pipeline.continue_batch(
        [Audio(audio.wave[:cut], audio.sample_rate) for audio in read.values()],
        seconds=plan.seconds,
        seed=plan.seed + start,
        prompt_audio="none",
    )
    for row, (index, audio) in enumerate(read.items()):
        coded = [
            pipeline.resynthesize(audio.wave, audio.sample_rate, levels=count).row()[cut:]
            for count in range(1, levels + 1)
        ]
        parts = (audio.wave[cut:], *coded, made.row(row))
        if min(part.shape[0] for part in parts) >= length and made.row(row).abs().max() > SILENCE:
            rows.append(torch.stack([to_16_bit(part[:length]) for part in parts])[None])
            kept.append(index)
    return torch.cat(rows), kept


def _audio(pipeline: Pipeline, crop: Recording, plan: ExamplePlan) -> Audio | None:
    """Return the crop at the pipeline's rate, or None if it is silent or cannot be read."""
    try:
        audio = read_recording(crop)
    except AudioError:
        return None
    wave = audio.wave
    if audio.sample_rate != pipeline.sample_rate:
        wave = resample(wave, audio.sample_rate, pipeline.sample_rate)
    wave = wave / wave.abs().max().clamp_min(1.0)
    cut = round(plan.prompt_seconds * pipeline.sample_rate)
    audible = min(float(wave[:cut].abs().amax()), float(wave[cut:].abs().amax()))
    return Audio(wave, pipeline.sample_rate) if audible > SILENCE else None


def _keep(path: Path, waves: Int16[Tensor, "B R T"], kept: Sequence[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        save_tensors({"waves": waves, "kept": torch.tensor(kept, dtype=torch.long)}, temporary)


def _read(path: Path, crops: Sequence[Recording], pipeline: str) -> Iterator[Clip]:
    try:
        stored: Mapping[str, Any] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(str(path), f"cannot be read ({error})", "delete it") from error
    for waves, index in zip(stored["waves"], stored["kept"].tolist(), strict=True):
        crop = crops[index]
        unseen = crop.split != "train"
        yield Clip(waves, crop.group, unseen or _tested(crop.group), unseen, pipeline)


def _tested(group: str) -> bool:
    digest = hashlib.blake2b(group.encode("utf-8", "surrogateescape"), digest_size=4).digest()
    return int.from_bytes(digest, "little") % TESTED_SHARE == 0


def trimmed(wave: Float[Tensor, "T"]) -> Float[Tensor, "T"]:
    """Cut the quiet at both ends, which shows where audio was cut rather than what made it."""
    loud = (wave.abs() > TRIM * wave.abs().max()).nonzero()
    return wave[int(loud[0]) : int(loud[-1]) + 1] if len(loud) else wave
