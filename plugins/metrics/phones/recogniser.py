"""Recognise phones with ``hama``, whose weights lie in its package (CTC over 16 kHz audio, IPA
phones)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from hama import ASRModel
from jaxtyping import Float
from torch import Tensor

from segue.core.audio import resample
from segue.plugins.metrics.phones.triphones import Phone

RATE = 16_000


@lru_cache(maxsize=1)
def _model() -> Any:
    return ASRModel()


class PhoneRecogniser:
    """Hear the phones of a recording; it was measured with English."""

    def __init__(self) -> None:
        self._model = _model()

    def __call__(self, wave: Float[Tensor, "T"], sample_rate: int) -> list[str]:
        """Return IPA phones in order; none for silence or less than a frame."""
        heard = self._heard(wave, sample_rate)
        return [] if heard is None else list(heard.phonemes)

    def spans(self, wave: Float[Tensor, "T"], sample_rate: int) -> list[Phone]:
        """Return the same phones and about when each is heard: CTC shows where a phone is
        recognised, not where it begins."""
        heard = self._heard(wave, sample_rate)
        spans = [] if heard is None else self._model.phoneme_spans(heard)
        return [Phone(s.phoneme, s.start_ms / 1000, s.end_ms / 1000) for s in spans]

    def _heard(self, wave: Float[Tensor, "T"], sample_rate: int) -> Any | None:
        wave = resample(wave, sample_rate, RATE) if sample_rate != RATE else wave
        return self._model(wave.numpy(), RATE) if wave.shape[0] >= RATE // 50 else None


def edits(heard: Sequence[str], wanted: Sequence[str]) -> int:
    """Return the least number of insertions, deletions and substitutions (Levenshtein)."""
    row = list(range(len(wanted) + 1))
    for count, phone in enumerate(heard, start=1):
        last, row[0] = row[0], count
        for place, other in enumerate(wanted, start=1):
            best = min(row[place] + 1, row[place - 1] + 1, last + (phone != other))
            last, row[place] = row[place], best
    return row[-1]
