"""Compare pitch classes of continuations with their prompt's key, from spectra without
transcription."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from segue.core.audio import SILENCE, resample
from segue.core.metrics import Continuation, ContinuationMetric, Measured
from segue.plugins.metrics.music.keys import CLASSES, key_figures

RATE, WINDOW, HOP = 8000, 4096, 1024  # bins of 2 Hz: semitones are distinct from 65 Hz (C2) on
LOWEST, HIGHEST = 65.0, 1050.0  # Hz, C2 to C6: fundamentals, and few of the overtones
FLOOR_DB = 30.0  # peaks so far below the loudest of their frame do not count


class Chroma(ContinuationMetric):
    """Measure spectral peaks by pitch class, weighted by the square root of their power.

    Overtones count as notes, so that a single note has its fifth and its third in it; the
    figures of the true continuation and of other pieces tell what that makes of real music.
    See ``key_figures`` for what is returned.
    """

    domains = ("piano",)

    def measure(self, records: Sequence[Continuation]) -> Measured:
        prompts, made, truth = (
            [pitch_classes(wave, record.sample_rate) for wave, record in pairs]
            for pairs in (
                [(record.prompt, record) for record in records],
                [(record.continuation, record) for record in records],
                [(record.truth, record) for record in records],
            )
        )
        rows = []
        for index, record in enumerate(records):
            foreign = [
                truth[other]
                for other in range(len(records))
                if records[other].group != record.group
            ]
            rows.append(key_figures(prompts[index], made[index], truth[index], foreign))
        return Measured(rows)


def pitch_classes(wave: Float[Tensor, "T"], sample_rate: int) -> Float[Tensor, "12"]:
    """Return the weight of each pitch class, C first; zeros for silence."""
    found = torch.zeros(CLASSES, dtype=torch.float64)
    if not wave.numel() or wave.abs().max() < SILENCE:
        return found
    wave = resample(wave, sample_rate, RATE)
    wave = torch.nn.functional.pad(wave, (0, max(0, WINDOW - wave.shape[0])))
    window = torch.hann_window(WINDOW)
    spectrum = torch.stft(wave, WINDOW, HOP, window=window, center=False, return_complex=True)
    power = spectrum.abs().square()
    middle = power[1:-1]
    loudest = power.max(0).values.clamp_min(1e-9)
    peaks = (middle > power[:-2]) & (middle >= power[2:])
    peaks &= middle > loudest * 10 ** (-FLOOR_DB / 10)
    bins, frames = peaks.nonzero(as_tuple=True)
    frequencies = _frequencies(power, bins + 1, frames)
    inside = (frequencies > LOWEST * 2 ** (-1 / 24)) & (frequencies < HIGHEST)
    classes = (12 * (frequencies[inside] / 440).log2() + 69).round().long() % CLASSES
    weights = middle[bins[inside], frames[inside]].sqrt().double()
    return found.index_add_(0, classes, weights)


def _frequencies(power: Tensor, bins: Tensor, frames: Tensor) -> Tensor:
    """Return the frequencies of peaks in Hz, refined by a parabola through the logarithms of three
    bins."""
    logs = (power + 1e-12).log()
    left, top, right = (logs[bins + step, frames] for step in (-1, 0, 1))
    shift = 0.5 * (left - right) / (left - 2 * top + right).clamp_max(-1e-6)
    return (bins + shift.clamp(-0.5, 0.5)) * RATE / WINDOW
