"""Synthesise audio for checks and for fitting: it sounds a little like speech or a piano."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from segue.core.interfaces import Tokenizer, WaveBatch

_HARMONICS = 16
_ROW_SECONDS, _ROWS = 4.0, 4


def speech_like(
    num_samples: int, sample_rate: int, generator: torch.Generator
) -> Float[Tensor, "T"]:
    """Return a gliding voice with moving formants, four syllables a second, hiss in between."""
    time = torch.arange(num_samples) / sample_rate
    draw = torch.rand(6, generator=generator)
    pitch = (90 + 120 * draw[0]) * (1 + 0.15 * torch.sin(math.tau * (0.5 + draw[1]) * time))
    syllable = torch.sin(math.pi * 4 * time + math.pi * draw[2]).abs()
    phase = math.tau * torch.cumsum(pitch, 0) / sample_rate
    first = 500 + 250 * torch.sin(math.tau * 1.7 * time + math.tau * draw[3])
    second = 1600 + 600 * torch.sin(math.tau * 1.3 * time + math.tau * draw[4])
    voice = torch.zeros(num_samples)
    for number in range(1, _HARMONICS + 1):
        frequency = number * pitch
        level = _resonance(frequency, first, 120.0) + 0.5 * _resonance(frequency, second, 250.0)
        audible = frequency < sample_rate / 2
        voice += audible * level * torch.sin(number * phase) / math.sqrt(number)
    hiss = torch.randn(num_samples, generator=generator) * (1 - syllable)
    return _normalised(voice * syllable + 0.1 * hiss)


def tonal(num_samples: int, sample_rate: int, generator: torch.Generator) -> Float[Tensor, "T"]:
    """Return struck notes that ring and fade, four a second."""
    wave = torch.zeros(num_samples)
    step = sample_rate // 4
    for onset in range(0, num_samples, step):
        note = int(torch.randint(48, 84, (), generator=generator))
        length = min(num_samples - onset, 3 * step)
        time = torch.arange(length) / sample_rate
        frequency = 440.0 * 2 ** ((note - 69) / 12)
        for number in range(1, 6):
            if number * frequency < sample_rate / 2:
                partial = torch.sin(math.tau * number * frequency * time)
                wave[onset : onset + length] += partial * torch.exp(-3 * number * time) / number
    return _normalised(wave)


def ragged_audio(lengths: Sequence[int], sample_rate: int, seed: int = 0) -> WaveBatch:
    """Return rows of these lengths in samples, speech and notes in turn; zero beyond their ends."""
    wave = torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        wave[row, :length] = _row(row, length, sample_rate, seed)
    return WaveBatch(wave, torch.tensor(lengths))


def reordered(tensor: Tensor) -> Tensor:
    """Return an equal tensor whose memory holds the last dimension outermost."""
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


@lru_cache(maxsize=128)  # most checks ask for the same few rows
def _row(row: int, length: int, sample_rate: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * seed + row)
    return (tonal if row % 2 else speech_like)(length, sample_rate, generator)


def fit_on_synthetic(tokenizer: Tokenizer) -> Mapping[str, float]:
    """Fit a tokenizer that needs fitting, on at least four frames per code."""
    return tokenizer.fit(fitting_audio(tokenizer))


def fitting_audio(tokenizer: Tokenizer) -> Iterator[WaveBatch]:
    """Yield the audio that ``fit_on_synthetic`` fits a tokenizer to."""
    spec = tokenizer.spec
    seconds = min(600.0, max(32.0, 4 * spec.codebook_size / float(spec.frame_rate)))
    length = round(_ROW_SECONDS * spec.sample_rate)
    lengths = [length - 7 * row for row in range(_ROWS)]
    for batch in range(math.ceil(seconds / (_ROWS * _ROW_SECONDS))):
        yield ragged_audio(lengths, spec.sample_rate, batch)


def _resonance(frequency: Tensor, centre: Tensor, width: float) -> Tensor:
    return torch.exp(-0.5 * ((frequency - centre) / width) ** 2)


def _normalised(wave: Tensor) -> Tensor:
    return 0.7 * wave / wave.abs().max().clamp_min(1e-6)
