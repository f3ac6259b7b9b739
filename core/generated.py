"""A request for audio and what came of it, as callers and lifecycle hooks see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from segue.core.audio import Audio
from segue.core.interfaces import Tokens, WaveBatch
from segue.core.options import Sampling

Task = Literal["continue", "generate", "acoustic_generation", "resynthesize"]
PromptAudio = Literal["original", "codec", "none"]


@dataclass(frozen=True)
class GenerationRequest:
    """What was asked for, as lifecycle hooks see it.

    Attributes:
        task: what is done.
        seconds: of audio to add.
        seed: of the first row.
        batch: rows.
        sampling: by stage.
        chunk_seconds: most new audio of one window of a stage; None: as much as fits.
    """

    task: Task
    seconds: float
    seed: int
    batch: int
    sampling: Mapping[str, Sampling]
    chunk_seconds: float | None = None


@dataclass
class GeneratedAudio:
    """A ragged batch of generated audio.

    Attributes:
        wave: ``[B, T]`` in [-1, 1], zero beyond a row's length.
        lengths: ``[B]`` samples.
        sample_rate: samples per second.
        prompt_samples: ``[B]`` samples at the start of each row that are the prompt.
        tokens: every stream's tokens, prompt included.
        notes: per row, what was done to the prompt (resampled, cropped, ...).
        metadata: what made it: task, seed, sampling, pipeline, resolved config.
    """

    wave: Float[Tensor, "B T"]
    lengths: Int64[Tensor, "B"]
    sample_rate: int
    prompt_samples: Int64[Tensor, "B"]
    tokens: Mapping[str, Tokens]
    notes: list[tuple[str, ...]]
    metadata: dict[str, Any] = field(default_factory=dict)

    def row(self, index: int = 0) -> Float[Tensor, "T"]:
        """The audio of one row, prompt included."""
        return self.wave[index, : int(self.lengths[index])]

    def continuation(self, index: int = 0) -> Float[Tensor, "T"]:
        """What one row holds after its prompt."""
        return self.row(index)[int(self.prompt_samples[index]) :]


def keep_recording(wave: Tensor, audios: Sequence[Audio], join: int) -> Tensor:
    """Put the recorded prompt over its codec version, cross-faded into what follows."""
    wave = wave.clone()
    for row, audio in zip(wave, audios, strict=True):
        count = audio.wave.shape[0]
        fade = min(join, count)
        weight = torch.ones(count)
        weight[count - fade :] = torch.linspace(1, 0, fade + 2)[1:-1]
        row[:count] = weight * audio.wave + (1 - weight) * row[:count]
    return wave


def without_prompt(audio: GeneratedAudio) -> GeneratedAudio:
    rows = [audio.continuation(index) for index in range(audio.wave.shape[0])]
    batch = WaveBatch.pad(rows)
    audio.wave, audio.lengths = batch.wave, batch.lengths
    audio.prompt_samples = torch.zeros_like(audio.prompt_samples)
    return audio
