"""Name the metrics and models for a domain's reproduction of the paper. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

#: Which values of a figure are good: the lowest, the highest, or those nearest to zero.
Direction = Literal["low", "high", "zero"]


@dataclass(frozen=True)
class Suite:
    """Metrics and models by their registered names.

    Figures are named as in `segue evaluate resynthesis`: ``<metric> <figure>``, or the metric alone
    where it has one.

    Attributes:
        prompt_seconds: of each recording, to continue from.
        seconds: that are added.
        continuations: metrics of continuations.
        quick: those of them that a sweep of temperatures is measured by.
        shown: figures of continuations that tables show; all others are in the JSON.
        structure: of these, those that tell of long-term structure, with their good values.
        rule: figures that a temperature is chosen by; the others must leave it sound.
        sound: the rate that says so.
        pipeline: shipped one that is measured; empty for that of the domain's name.
        pairs: metrics of a reconstruction against its recording, with their good values.
        content: the metric of pairs that measures kept content, if there is one.
        voice: the metric of continuations that measures the voice, if there is one.
        autoregressive: a stage model that draws acoustic tokens from left to right.
        masked: one that fills masks, as values of a stage's ``lm`` and ``sampling``.
    """

    prompt_seconds: float
    seconds: float
    continuations: tuple[str, ...]
    quick: tuple[str, ...]
    shown: tuple[str, ...]
    structure: Mapping[str, Direction]
    rule: Mapping[str, Direction]
    pairs: Mapping[str, Direction]
    autoregressive: str
    masked: str
    masked_sampling: Mapping[str, Any] = field(default_factory=dict)
    sound: str = "health.v1 healthy"
    pipeline: str = ""
    content: str | None = None
    voice: str | None = None
