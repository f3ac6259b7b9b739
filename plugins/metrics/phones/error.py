"""Measure how many of the phones heard in a reference are heard in other audio."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

from segue.core.interfaces import Metric
from segue.plugins.metrics.phones.recogniser import PhoneRecogniser, edits


class PhoneError(Metric):
    """Count edits per phone that the recogniser hears in the reference.

    The reference's transcript is the recogniser's own, not the truth: what it gets wrong in both
    counts as kept. Silence has 1.
    """

    domains = ("speech",)
    unit = "edits per phone"
    higher_is_better = False

    def __init__(self) -> None:
        self._recogniser = PhoneRecogniser()

    def __call__(
        self, reference: Float[Tensor, "T"], audio: Float[Tensor, "T"], sample_rate: int
    ) -> float:
        wanted = self._recogniser(reference, sample_rate)
        if not wanted:
            return math.nan
        return edits(self._recogniser(audio, sample_rate), wanted) / len(wanted)
