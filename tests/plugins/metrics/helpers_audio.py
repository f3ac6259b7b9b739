"""Synthetic audio of which the answers are known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from segue.core.metrics import Continuation

RATE = 16_000
C_MAJOR = (60, 62, 64, 65, 67, 69, 71, 72)
SHARPS = (61, 63, 66, 68, 70, 73, 75, 78)  # the notes that C major lacks


def tone(pitch: float, seconds: float, overtones: int = 1) -> torch.Tensor:
    """A struck string: it begins at once and fades."""
    time = torch.arange(round(seconds * RATE)) / RATE
    frequency = 440 * 2 ** ((pitch - 69) / 12)
    waves = (torch.sin(2 * math.pi * k * frequency * time) / k**2 for k in range(1, overtones + 1))
    wave = torch.stack(list(waves)).sum(0) * torch.exp(-3 * time / max(seconds, 0.3))
    fade = min(80, len(wave))
    wave[-fade:] *= torch.linspace(1, 0, fade)
    return 0.3 * wave


def melody(pitches: Sequence[int], seconds: float = 0.5, overtones: int = 1) -> torch.Tensor:
    return torch.cat([tone(pitch, seconds, overtones) for pitch in pitches])


def noise(seconds: float = 2.0, seed: int = 0, level: float = 0.1) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return level * torch.randn(round(seconds * RATE), generator=random)


def speech_like(seconds: float = 8.0, seed: int = 0) -> torch.Tensor:
    """Noise whose loudness changes every 50 ms, at random."""
    random = torch.Generator().manual_seed(seed + 1)
    loudness = torch.rand(round(seconds * 20), generator=random).repeat_interleave(RATE // 20)
    return noise(seconds, seed) * loudness


def voice(pitch: float, formants: Sequence[float], seconds: float, seed: int = 0) -> torch.Tensor:
    """A buzz through resonances, in syllables of changing length."""
    random = torch.Generator().manual_seed(seed)
    time = torch.arange(round(seconds * RATE)) / RATE
    wave = torch.zeros_like(time)
    drift = 1 + 0.03 * torch.sin(2 * math.pi * 2.3 * time + seed)
    phase = 2 * math.pi * torch.cumsum(pitch * drift, 0) / RATE
    for k in range(1, int(3800 / pitch)):
        gain = sum(1 / (1 + ((k * pitch - f) / 120) ** 2) for f in formants)
        wave += gain * torch.sin(k * phase)
    syllables = torch.rand(round(seconds * 6) + 1, generator=random).repeat_interleave(RATE // 6)
    return 0.05 * wave * syllables[: len(wave)]


def record(
    prompt: torch.Tensor,
    continuation: torch.Tensor,
    truth: torch.Tensor | None = None,
    group: str = "a",
) -> Continuation:
    truth = torch.zeros(0) if truth is None else truth
    return Continuation(prompt, continuation, truth, RATE, group)
