"""Predicted opinion of speech: DistillMOS (Stahl and Gamper, arXiv 2502.05356)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from distillmos import ConvTransformerSQAModel
from jaxtyping import Float
from torch import Tensor

from segue.core.audio import SILENCE, resample
from segue.core.metrics import Continuation, ContinuationMetric, Measured

RATE = 16_000


class DistillMos(ContinuationMetric):
    """The opinion, 1 to 5, that listeners would have of the speech, with that of the recording's
    own continuation as ``truth_opinion``. Silence has none."""

    domains = ("speech",)

    def __init__(self) -> None:
        self._model = ConvTransformerSQAModel().eval()

    def measure(self, records: Sequence[Continuation]) -> Measured:
        return Measured(
            [
                {
                    "opinion": self.opinion(record.continuation, record.sample_rate),
                    "truth_opinion": self.opinion(record.truth, record.sample_rate),
                }
                for record in records
            ]
        )

    @torch.no_grad()
    def opinion(self, wave: Float[Tensor, "T"], sample_rate: int) -> float:
        """Return the predicted opinion of one file."""
        if not wave.numel() or wave.abs().max() < SILENCE:
            return math.nan
        wave = resample(wave, sample_rate, RATE) if sample_rate != RATE else wave
        return float(self._model(wave[None].float()))
