"""Measure how many of the words heard in a recording are heard in other audio."""

from __future__ import annotations

import math
from pathlib import Path

from jaxtyping import Float
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from segue.core.interfaces import Metric
from segue.plugins.metrics.words.config import WordErrorOptions
from segue.plugins.metrics.words.recogniser import WordRecogniser, base_folder

NAME = "word_error.v1"


class WordError(Metric):
    """Count edits over the number of words that the recogniser hears in the reference.

    The reference's transcript is the recogniser's own, not the truth: what it gets wrong in both
    counts as kept. Silence has 1.

    Args:
        config: options.
    """

    domains = ("speech",)
    unit = "edits per word"
    higher_is_better = False
    costly = True

    def __init__(self, config: WordErrorOptions) -> None:
        folder = Path(config.weights) if config.weights else base_folder(NAME)
        self._recogniser = WordRecogniser(folder, config.beam)

    def __call__(
        self, reference: Float[Tensor, "T"], audio: Float[Tensor, "T"], sample_rate: int
    ) -> float:
        wanted = self._recogniser(reference, sample_rate)
        if not wanted:
            return math.nan
        heard = self._recogniser(audio, sample_rate)
        return float(Levenshtein.distance(heard, wanted) / len(wanted))
