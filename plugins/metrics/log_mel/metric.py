"""Measure how far two log-mel spectrograms lie apart, in decades."""

from __future__ import annotations

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
        mel = MelSpectrogram(
            sample_rate,
            n_fft=round(WINDOW_SECONDS * sample_rate),
            hop_length=round(HOP_SECONDS * sample_rate),
            n_mels=BANDS,
            power=1,
        )
        ours, theirs = (mel(wave).clamp_min(FLOOR).log10() for wave in (audio, reference))
        return float((ours - theirs).abs().mean())
