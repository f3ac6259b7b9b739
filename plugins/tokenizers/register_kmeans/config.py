"""Options of the register k-means tokenizer. Imports no torch."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

from pydantic import Field, model_validator

from segue.core.spec import TokenSpec
from segue.plugins.tokenizers.common.options import WindowOptions, check_window

RATE, HOP = 16000, 320  # samples a second, and from one frame to the next
LOWEST, KEYS = 21, 88  # the MIDI number of a piano's first key, and how many it has


class RegisterKMeansOptions(WindowOptions):
    """Configure ``register_kmeans``: each register of the keyboard is one level of tokens.

    Attributes:
        splits: MIDI numbers of the first key of every register but the lowest.
        pool: frames per token; each has its own onsets.
        onset_weight: how much an onset counts in a distance, where a sounding key counts 1.
        pitch_window: samples of the window for pitches.
        onset_window: samples of the window for onsets.
    """

    splits: tuple[int, ...] = (48, 60, 72)
    pool: int = Field(default=2, ge=1, le=10)
    onset_weight: float = Field(default=5.0, gt=0)
    pitch_window: int = Field(default=4096, ge=4)
    onset_window: int = Field(default=1024, ge=4)
    window_seconds: float = Field(default=20.0, ge=1.0)
    margin_seconds: float = Field(default=0.48, ge=0.4)

    @model_validator(mode="after")
    def _shapes_fit(self) -> RegisterKMeansOptions:
        check_window("pitch_window", self.pitch_window, HOP)
        check_window("onset_window", self.onset_window, HOP)
        if RATE % (HOP * self.pool):
            raise ValueError(f"pool ({self.pool}) must divide {RATE // HOP} frames a second")
        edges = (LOWEST, *self.splits, LOWEST + KEYS)
        if any(high <= low for low, high in pairwise(edges)):
            raise ValueError(
                f"splits ({', '.join(map(str, self.splits))}) must ascend, above {LOWEST} and"
                f" below {LOWEST + KEYS}"
            )
        return self

    @property
    def registers(self) -> list[tuple[int, int]]:
        """Return the keys of each register: first and last plus one, counted from 0."""
        edges = (LOWEST, *self.splits, LOWEST + KEYS)
        return [(low - LOWEST, high - LOWEST) for low, high in pairwise(edges)]

    def spec(self) -> TokenSpec:
        rate = Fraction(RATE, HOP * self.pool)
        return TokenSpec(RATE, rate, len(self.splits) + 1, self.num_clusters)
