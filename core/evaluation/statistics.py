"""Means with confidence intervals: a table of figures always says how many items it rests on."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Estimate:
    """Mean of ``count`` items, its 95 % interval (normal), and the extremes a mean would hide."""

    mean: float
    low: float
    high: float
    lowest: float
    highest: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def estimate(values: Sequence[float]) -> Estimate:
    """Summarise at least one value."""
    mean = statistics.fmean(values)
    error = statistics.stdev(values) / len(values) ** 0.5 * 1.96 if len(values) > 1 else 0.0
    return Estimate(mean, mean - error, mean + error, min(values), max(values), len(values))


def summarise(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Every column of ``rows`` as an estimate, ready for JSON."""
    return {key: asdict(estimate([row[key] for row in rows])) for key in rows[0]}
