"""Measure whether continuations sound like speech to a phone recogniser."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from segue.core.metrics import Continuation, ContinuationMetric, Measured
from segue.plugins.metrics.distances import jensen_shannon
from segue.plugins.metrics.phones.recogniser import PhoneRecogniser

Phones = Sequence[Sequence[str]]


class PhoneStatistics(ContinuationMetric):
    """Compare the phones that a recogniser hears in continuations with those of real speech.

    ``phones_per_second`` and ``different`` (different phones over all phones) are figures of a
    file, with those of the recording's own continuation as ``truth_...``. Figures of the set:
    ``phone_distance`` and ``bigram_distance``, Jensen-Shannon divergences (bits, 0 to 1) of phones
    and of pairs of phones to those of all true continuations; ``prompt_...`` is the same of the
    prompts, real speech, though of another length: about what perfect continuations would have.
    """

    domains = ("speech",)

    def __init__(self) -> None:
        self._recogniser = PhoneRecogniser()

    def measure(self, records: Sequence[Continuation]) -> Measured:
        made, truth, prompts = (
            [self._recogniser(wave, record.sample_rate) for wave, record in pairs]
            for pairs in (
                [(record.continuation, record) for record in records],
                [(record.truth, record) for record in records],
                [(record.prompt, record) for record in records],
            )
        )
        rows = [
            _row(record.continuation, ours, record.sample_rate, "")
            | _row(record.truth, theirs, record.sample_rate, "truth_")
            for record, ours, theirs in zip(records, made, truth, strict=True)
        ]
        overall = {
            "phone_distance": _Distance(made, truth, 1),
            "prompt_phone_distance": _Distance(prompts, truth, 1),
            "bigram_distance": _Distance(made, truth, 2),
            "prompt_bigram_distance": _Distance(prompts, truth, 2),
        }
        return Measured(rows, overall)


def _row(wave: Tensor, phones: Sequence[str], rate: int, prefix: str) -> dict[str, float]:
    seconds = wave.shape[0] / rate
    return {
        f"{prefix}phones_per_second": len(phones) / seconds if seconds else math.nan,
        f"{prefix}different": len(set(phones)) / len(phones) if phones else math.nan,
    }


class _Distance:
    """Divergence of the phones, or pairs of phones, of two sets of files."""

    def __init__(self, ours: Phones, theirs: Phones, order: int) -> None:
        self._counts = [[_counted(phones, order) for phones in files] for files in (ours, theirs)]
        every = {token for files in self._counts for file in files for token in file}
        self._places = {token: place for place, token in enumerate(sorted(every))}
        self._tables = [
            torch.stack([self._vector(file) for file in files]) for files in self._counts
        ]

    def _vector(self, counts: Counter[tuple[str, ...]]) -> Float[Tensor, "V"]:
        vector = torch.zeros(len(self._places), dtype=torch.float64)
        for token, count in counts.items():
            vector[self._places[token]] = count
        return vector

    def __call__(self, weights: Float[Tensor, "B"]) -> float:
        return jensen_shannon(*(weights @ table for table in self._tables))


def _counted(phones: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter((phone,) for phone in phones) if order == 1 else Counter(pairwise(phones))
