"""A phone recogniser with weights in its package: ``hama`` (CTC over 16 kHz audio, IPA phones)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from hama import ASRModel
from jaxtyping import Float
from torch import Tensor

from segue.core.audio import resample

RATE = 16_000


@lru_cache(maxsize=1)
def _model() -> Any:
    return ASRModel()


class PhoneRecogniser:
    """Phones of a recording; English is what it was measured with."""

    def __init__(self) -> None:
        self._model = _model()

    def __call__(self, wave: Float[Tensor, "T"], sample_rate: int) -> list[str]:
        """IPA phones in order; none for silence or less than a frame."""
        wave = resample(wave, sample_rate, RATE) if sample_rate != RATE else wave
        if wave.shape[0] < RATE // 50:
            return []
        return list(self._model(wave.numpy(), RATE).phonemes)


def edits(heard: Sequence[str], wanted: Sequence[str]) -> int:
    """Least number of phones to put in, leave out or exchange (Levenshtein)."""
    row = list(range(len(wanted) + 1))
    for count, phone in enumerate(heard, start=1):
        last, row[0] = row[0], count
        for place, other in enumerate(wanted, start=1):
            best = min(row[place] + 1, row[place - 1] + 1, last + (phone != other))
            last, row[place] = row[place], best
    return row[-1]
