"""Recognise phones, and measure with them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from segue.core.audio import resample
from segue.core.metrics import Continuation, ContinuationMetric, Measured, SetFigure
from segue.plugins.layers.distributions import jensen_shannon
from segue.plugins.metrics.common import (
    SPEECH_RATE,
    TranscriptError,
    of_each,
    with_truth,
)

LONGEST_PHONE = 0.4  # seconds; what lasts longer holds a pause


@dataclass(frozen=True)
class Phone:
    """A phone and when it is heard, in seconds; it lasts until the next one begins."""

    label: str
    start: float
    end: float


def triphones(phones: Sequence[Phone]) -> Iterator[tuple[Phone, str]]:
    """Yield each phone from the start of the one before to the end of the one after, with these two
    as its context; none across a gap between words or with a pause in it."""
    for before, here, after in zip(phones, phones[1:], phones[2:], strict=False):
        three = (before, here, after)
        joined = before.end == here.start and here.end == after.start
        if joined and all(0 < phone.end - phone.start <= LONGEST_PHONE for phone in three):
            whole = Phone(here.label, before.start, after.end)
            yield whole, f"{before.label} {after.label}"


@lru_cache(maxsize=1)
def _model() -> Any:
    from hama import ASRModel

    return ASRModel()


class PhoneRecogniser:
    """Hear the phones of a recording with ``hama`` (CTC, IPA phones), whose weights lie in its
    package; it was measured with English."""

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
        wave = resample(wave, sample_rate, SPEECH_RATE)
        enough = wave.shape[0] >= SPEECH_RATE // 50
        return self._model(wave.numpy(), SPEECH_RATE) if enough else None


class PhoneError(TranscriptError):
    """Count edits per phone that the recogniser hears in the reference."""

    unit = "edits per phone"

    def __init__(self) -> None:
        self.recognise = PhoneRecogniser()


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
        prompts, made, truth = of_each(records, self._recogniser)
        rows = [
            with_truth(_row(ours, record.seconds[1]), _row(theirs, record.seconds[2]))
            for record, ours, theirs in zip(records, made, truth, strict=True)
        ]
        overall = {
            "phone_distance": _divergence(made, truth, pairs=False),
            "prompt_phone_distance": _divergence(prompts, truth, pairs=False),
            "bigram_distance": _divergence(made, truth, pairs=True),
            "prompt_bigram_distance": _divergence(prompts, truth, pairs=True),
        }
        return Measured(rows, overall)


def _row(phones: Sequence[str], seconds: float) -> dict[str, float]:
    return {
        "phones_per_second": len(phones) / seconds if seconds else math.nan,
        "different": len(set(phones)) / len(phones) if phones else math.nan,
    }


def _divergence(ours: Phones, theirs: Phones, pairs: bool) -> SetFigure:
    """Return the divergence of the phones, or pairs of phones, of two sets of files.

    It depends on how often each file counts.
    """
    counts: list[Counter[Any]]
    counts = [Counter(pairwise(one) if pairs else one) for one in (*ours, *theirs)]
    every = sorted({token for one in counts for token in one})
    table = torch.tensor([[one[token] for token in every] for one in counts], dtype=torch.float64)
    first, second = table[: len(ours)], table[len(ours) :]
    return lambda weights: jensen_shannon(weights @ first, weights @ second)
