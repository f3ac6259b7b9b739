"""Measure how far two log-mel spectrograms lie apart, in decades."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor
from torchaudio.transforms import MelSpectrogram

from segue.core.interfaces import Metric

FLOOR = 1e-5
WINDOW_SECONDS, HOP_SECONDS, BANDS = 0.064, 0.016, 80


class LogMelDistance(Metric):
    """Mean absolute difference of log10 mel magnitudes (80 bands, 64 ms windows)."""

    unit = "log10"
    higher_is_better = False

    def __call__(
        self, reference: Float[Tensor, "T"], audio: Float[Tensor, "T"], sample_rate: int
    ) -> float:
        window = round(WINDOW_SECONDS * sample_rate)
        if reference.shape[0] <= window // 2:  # a spectrogram reflects half a window at each end
            return math.nan
        mel = MelSpectrogram(
            sample_rate,
            n_fft=window,
            hop_length=round(HOP_SECONDS * sample_rate),
            n_mels=BANDS,
            power=1,
        )
        ours, theirs = (mel(wave).clamp_min(FLOOR).log10() for wave in (audio, reference))
        return float((ours - theirs).abs().mean())
