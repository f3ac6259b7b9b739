"""Name the metrics and models for a domain's reproduction of the paper. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

#: Good values of a figure: the lowest, the highest, or those nearest to zero.
Direction = Literal["low", "high", "zero"]


@dataclass(frozen=True)
class Suite:
    """Metrics and models by their registered names.

    Figures are named as in `segue evaluate resynthesis`: ``<metric> <figure>``, or the metric alone
    where it has one.
    """

    prompt_seconds: float  # of each recording, to continue from
    seconds: float  # that are added
    continuations: tuple[str, ...]  # metrics of continuations
    quick: tuple[str, ...]  # those of them that a sweep of temperatures is measured by
    shown: tuple[str, ...]  # figures of continuations that tables show; all others are in the JSON
    # Figures of ``shown`` that measure long-term structure, with their good values.
    structure: Mapping[str, Direction]
    # Figures that a temperature is chosen by; the others must leave it sound.
    rule: Mapping[str, Direction]
    # Metrics of a reconstruction against its recording, with their good values.
    pairs: Mapping[str, Direction]
    autoregressive: str = "delay_transformer.v1"  # draws acoustic tokens from left to right
    masked: str = "masked_transformer.v1"  # fills masks, with ``masked_sampling``
    masked_sampling: Mapping[str, Any] = field(default_factory=lambda: {"iterations": [16, 2]})
    sound: str = "health.v1 healthy"  # the rate of what is sound
    pipeline: str = ""  # shipped one that is measured; empty for that of the domain's name
    content: str | None = None  # the metric of pairs that measures kept content, if there is one
    voice: str | None = None  # the metric of continuations that measures the voice, if there is one
