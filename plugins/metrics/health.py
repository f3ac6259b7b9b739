"""Detect continuations that are silent, clipped, drifting or looping."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torchaudio.transforms import MelSpectrogram

from segue.core.metrics import Continuation, ContinuationMetric, Measured

CLIPPED, SILENT_RMS = 0.999, 1e-3
MOST_CLIPPED, MOST_SILENT = 1e-3, 0.8  # shares of a file from which it is called so
LOOPING = 0.85  # repetition from which it is called so; recordings have up to 0.8
FRAME_SECONDS, BANDS = 0.02, 40
LEAST_CHANGE = 0.15  # decades², of all bands of a frame; a held note has less, music more
LAG_SECONDS, SPAN_SECONDS = (0.1, 3.0), 2.0  # periods of a loop; how long it must last


class Health(ContinuationMetric):
    """Measure what shows a silent, clipped, drifting or looping continuation.

    ``level_ratio_db`` is the continuation's level against the prompt's, ``clipped`` and ``silent``
    are shares of samples and of pieces of 50 ms, ``spectrum_distance`` compares long-term spectra
    (decades) and ``repetition`` is near 1 where two seconds are the same as those before them. The
    ``..._file`` figures say whether that is so much that the file is broken; ``healthy`` means
    that none is, and ``truth_healthy`` is the same of the recording, where it should be 1.
    """

    def measure(self, records: Sequence[Continuation]) -> Measured:
        return Measured([_row(record) for record in records])


def _row(record: Continuation) -> dict[str, float]:
    found = health(record.continuation, record.sample_rate)
    ratio = _power(record.continuation) / _power(record.prompt)
    distance = _spectrum_distance(record.prompt, record.continuation)
    truth = math.nan
    if record.truth.numel():
        truth = health(record.truth, record.sample_rate)["healthy"]
    return {
        "level_ratio_db": 10 * math.log10(ratio),
        "spectrum_distance": distance,
        **found,
        "truth_healthy": truth,
    }


def health(wave: Float[Tensor, "T"], sample_rate: int) -> dict[str, float]:
    """Return how much of one file is silent, clipped or repeated, and whether that is too much."""
    clipped = float((wave.abs() >= CLIPPED).float().mean())
    silent = float((_loudness(wave, sample_rate) < SILENT_RMS).float().mean())
    repeated = repetition(wave, sample_rate)
    flags = {
        "silent_file": float(silent > MOST_SILENT),
        "clipped_file": float(clipped > MOST_CLIPPED),
        "looping_file": float(repeated > LOOPING),
    }
    return {
        "clipped": clipped,
        "silent": silent,
        "repetition": repeated,
        **flags,
        "healthy": float(not any(flags.values())),
    }


def repetition(wave: Float[Tensor, "T"], sample_rate: int) -> float:
    """Return how much any two seconds resemble those one period before, for periods of 0.1 to 3 s.

    Changes of the log-mel spectrum are correlated, not spectra: a held note or a steady noise is
    no loop. 1 is an exact repetition; 0 where the audio is shorter than span and period.
    """
    hop = round(FRAME_SECONDS * sample_rate)
    mel = MelSpectrogram(sample_rate, n_fft=2 * hop, hop_length=hop, n_mels=BANDS, power=1)
    # The floor hides what is 50 dB below the loudest: noise of rounding repeats nothing.
    frames = mel(wave)
    spectra = frames.clamp_min(float(frames.max()) * 3e-3 + 1e-5).log10()
    changes = torch.diff(spectra, dim=1)
    changes = changes - changes.mean(0)  # a steady beat of different notes is not a loop
    span = round(SPAN_SECONDS / FRAME_SECONDS)
    best = 0.0
    for lag in range(*(round(seconds / FRAME_SECONDS) for seconds in LAG_SECONDS)):
        if changes.shape[1] < lag + span:
            break
        best = max(best, _correlation(changes[:, lag:], changes[:, :-lag], span))
    return best


def _correlation(a: Float[Tensor, "D N"], b: Float[Tensor, "D N"], span: int) -> float:
    """Return the largest correlation of any ``span`` frames of both."""
    sums = [_windowed((x * y).sum(0).double(), span) for x, y in ((a, b), (a, a), (b, b))]
    power = (sums[1] * sums[2]).clamp_min(0).sqrt()
    return float((sums[0] / power.clamp_min(LEAST_CHANGE * span)).max())


def _windowed(values: Float[Tensor, "N"], span: int) -> Float[Tensor, "M"]:
    total = torch.cat([values.new_zeros(1), values.cumsum(0)])
    return total[span:] - total[:-span]


def _power(wave: Tensor) -> float:
    return float(wave.double().square().mean()) + 1e-12


def _loudness(wave: Tensor, sample_rate: int) -> Tensor:
    """Return the RMS of pieces of 50 ms."""
    piece = sample_rate // 20
    count = max(1, wave.shape[0] // piece)
    return wave[: count * piece].reshape(count, -1).square().mean(1).sqrt()


def _spectrum_distance(a: Tensor, b: Tensor) -> float:
    spectra = []
    for wave in (a, b):
        window = torch.hann_window(512)
        stft = torch.stft(wave, 512, 256, window=window, return_complex=True)
        spectra.append(stft.abs().mean(1).clamp_min(1e-5).log10())
    return float((spectra[0] - spectra[1]).abs().mean())
