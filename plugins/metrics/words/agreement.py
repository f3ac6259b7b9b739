"""Measure whether two recognisers hear the same words; no transcript is needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from english_words import get_english_words_set
from jaxtyping import Float
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from segue.core.metrics import Continuation, ContinuationMetric, Measured
from segue.plugins.metrics.words.config import AgreementOptions
from segue.plugins.metrics.words.recogniser import WordRecogniser, base_folder, tiny_folder

NAME = "agreement.v1"
PHRASE = 3  # words; what is said twice is counted in phrases of so many


class Agreement(ContinuationMetric):
    """Word error between two recognisers: low on speech, near 1 or above on babble.

    Figures of a file, with those of how the recording goes on as ``truth_...``: ``word_error``,
    edits between the two over the first one's words; ``english``, share of the first one's words
    that a dictionary has; ``words_per_second``; ``repeated``, share of phrases of three words that
    were there before. ``pooled_word_error`` is that of the set: all edits over all words. A file in
    which nothing is heard has an error of 1.

    Args:
        config: options.
    """

    domains = ("speech",)
    costly = True

    def __init__(self, config: AgreementOptions) -> None:
        first = Path(config.weights) if config.weights else base_folder(NAME)
        second = Path(config.other_weights) if config.other_weights else tiny_folder(NAME)
        self._recognisers = [WordRecogniser(folder, config.beam) for folder in (first, second)]

    def measure(self, records: Sequence[Continuation]) -> Measured:
        heard, rows = [], []
        for record in records:
            ours = self._heard(record.continuation, record.sample_rate)
            theirs = self._heard(record.truth, record.sample_rate)
            heard.append((ours, theirs))
            _, made, real = record.seconds
            truth = {f"truth_{name}": figure for name, figure in figures(*theirs, real).items()}
            rows.append(figures(*ours, made) | truth)
        return Measured(
            rows,
            {
                "pooled_word_error": _Pooled([ours for ours, _ in heard]),
                "truth_pooled_word_error": _Pooled([theirs for _, theirs in heard]),
            },
        )

    def _heard(self, wave: Float[Tensor, "T"], rate: int) -> tuple[list[str], list[str]]:
        first, second = (recognise(wave, rate) for recognise in self._recognisers)
        return first, second


def figures(first: Sequence[str], second: Sequence[str], seconds: float) -> dict[str, float]:
    """Return the figures of one file from what was heard in it; of no audio, nothing."""
    if not seconds:
        return dict.fromkeys(("word_error", "english", "words_per_second", "repeated"), math.nan)
    phrases = [tuple(first[i : i + PHRASE]) for i in range(len(first) - PHRASE + 1)]
    return {
        "word_error": Levenshtein.distance(first, second) / len(first) if first else 1.0,
        "english": sum(map(is_english, first)) / len(first) if first else math.nan,
        "words_per_second": len(first) / seconds,
        "repeated": 1 - len(set(phrases)) / len(phrases) if phrases else math.nan,
    }


def is_english(word: str) -> bool:
    """Return whether a word is a number or in a dictionary, with or without an ending."""
    if word.isdigit():
        return True
    known = _dictionary()
    plain = word.partition("'")[0]
    stems = [plain, *(plain.removesuffix(e) for e in ("s", "es", "d", "ed", "ing", "er", "est"))]
    return any(stem in known or stem + "e" in known for stem in stems)


@lru_cache(maxsize=1)
def _dictionary() -> frozenset[str]:
    return frozenset(get_english_words_set(["web2"], lower=True))


class _Pooled:
    """All edits over all words of a set of files."""

    def __init__(self, heard: Sequence[tuple[list[str], list[str]]]) -> None:
        edits = [Levenshtein.distance(a, b) if a else 1 for a, b in heard]
        self._edits = torch.tensor(edits, dtype=torch.float64)
        self._words = torch.tensor([max(1, len(a)) for a, _ in heard], dtype=torch.float64)

    def __call__(self, weights: Float[Tensor, "B"]) -> float:
        return float((weights @ self._edits) / (weights @ self._words))
