"""Measure density and rhythm of continuations from rises of the spectrum, without transcription."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torchaudio.transforms import MelSpectrogram

from segue.core.audio import SILENCE
from segue.core.metrics import Continuation, ContinuationMetric, Measured
from segue.plugins.metrics.music.timing import timing_figures

HOP_SECONDS, WINDOW_SECONDS, BANDS = 0.01, 0.046, 64
RANGE = 1e-3  # bands so far below the loudest magnitude are flattened
LAG = 2  # frames over which a rise is taken
AROUND, APART = 10, 5  # frames of the local mean to each side; least distance of onsets
RISE = 0.05  # decades, mean over bands, by which an onset exceeds the local mean


class Onsets(ContinuationMetric):
    """Measure onsets per second and the times between them; a chord is one onset.

    See ``timing_figures`` for what is returned.
    """

    domains = ("piano",)

    def measure(self, records: Sequence[Continuation]) -> Measured:
        rows = []
        for record in records:
            waves = (record.prompt, record.continuation, record.truth)
            prompt, ours, truth = (find_onsets(wave, record.sample_rate) for wave in waves)
            rows.append(timing_figures(prompt, ours, truth, record.seconds))
        return Measured(rows)


def find_onsets(wave: Float[Tensor, "T"], sample_rate: int) -> list[float]:
    """Return the seconds of onsets: peaks of the spectral flux (Dixon, DAFx 2006)."""
    if not wave.numel() or wave.abs().max() < SILENCE:
        return []
    hop = round(HOP_SECONDS * sample_rate)
    mel = MelSpectrogram(
        sample_rate, n_fft=round(WINDOW_SECONDS * sample_rate), hop_length=hop, n_mels=BANDS,
        power=1, pad_mode="constant",
    )  # fmt: skip
    # Silence goes in front, so that what begins with the audio is found, too.
    spectra = mel(torch.nn.functional.pad(wave, (AROUND * hop, 0)))
    spectra = spectra.clamp_min(float(spectra.max()) * RANGE).log10()
    flux = (spectra[:, LAG:] - spectra[:, :-LAG]).clamp_min(0).mean(0)
    pooled = torch.nn.functional
    largest = pooled.max_pool1d(flux[None], 2 * APART + 1, 1, APART)[0]
    mean = pooled.avg_pool1d(flux[None], 2 * AROUND + 1, 1, AROUND, count_include_pad=False)[0]
    peaks = ((flux == largest) & (flux > mean + RISE)).nonzero()[:, 0]
    onsets = [float((peak + LAG / 2 - AROUND) * HOP_SECONDS) for peak in peaks]
    # Where the audio is cut off, all bands rise.
    return [onset for onset in onsets if onset < wave.shape[0] / sample_rate - WINDOW_SECONDS]
