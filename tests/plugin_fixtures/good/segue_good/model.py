"""The loudness metric."""

from __future__ import annotations

from torch import Tensor

from segue.core.interfaces import Metric
from segue_good.config import LoudnessOptions


class Loudness(Metric):
    def __init__(self, options: LoudnessOptions) -> None:
        if options.weights:
            raise RuntimeError("no weights today")
        self.options = options

    def __call__(self, reference: Tensor, audio: Tensor, sample_rate: int) -> float:
        return float(audio.abs().max()) * self.options.scale
