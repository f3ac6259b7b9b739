"""Describe when notes begin: density and the distribution of times between onsets."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from segue.plugins.metrics.distances import jensen_shannon

CHORD_SECONDS = 0.05  # onsets closer than that are one
SHORTEST, OCTAVES, BINS_PER_OCTAVE = 0.05, 6, 2  # of times between onsets: 0.05 to 3.2 s


def timing_figures(
    prompt: Sequence[float],
    ours: Sequence[float],
    truth: Sequence[float],
    seconds: tuple[float, float, float],
) -> dict[str, float]:
    """Compare the onsets of a continuation with its prompt's.

    Args:
        prompt, ours, truth: onsets in seconds, in order.
        seconds: lengths of the three.

    Returns:
        ``density`` (onsets per second) of each; ``density_ratio`` to the prompt's and whether it is
        ``within_factor_two``, and both of the truth; ``median_interval`` (seconds between onsets)
        of each; ``interval_distance``, divergence (bits) of the times between onsets from the
        prompt's, of the truth from the prompt's, and of the continuation from the truth's.
    """
    densities = [
        len(onsets) / length if length else math.nan
        for onsets, length in zip((prompt, ours, truth), seconds, strict=True)
    ]
    ratio, true_ratio = (_ratio(density, densities[0]) for density in densities[1:])
    tables = [interval_table(onsets) for onsets in (prompt, ours, truth)]
    medians = [_median(onsets) for onsets in (prompt, ours, truth)]
    return {
        "prompt_density": densities[0],
        "density": densities[1],
        "truth_density": densities[2],
        "density_ratio": ratio,
        "within_factor_two": _within(ratio),
        "truth_density_ratio": true_ratio,
        "truth_within_factor_two": _within(true_ratio),
        "prompt_median_interval": medians[0],
        "median_interval": medians[1],
        "truth_median_interval": medians[2],
        "interval_distance": jensen_shannon(tables[0], tables[1]),
        "truth_interval_distance": jensen_shannon(tables[0], tables[2]),
        "interval_distance_to_truth": jensen_shannon(tables[1], tables[2]),
    }


def joined(onsets: Sequence[float]) -> list[float]:
    """Sort onsets and join those of a chord."""
    kept: list[float] = []
    for onset in sorted(onsets):
        if not kept or onset - kept[-1] >= CHORD_SECONDS:
            kept.append(onset)
    return kept


def interval_table(onsets: Sequence[float]) -> Float[Tensor, "12"]:
    """Count the times between onsets in each half octave from 0.05 s on."""
    table = torch.zeros(OCTAVES * BINS_PER_OCTAVE, dtype=torch.float64)
    for interval in _intervals(onsets):
        place = math.floor(BINS_PER_OCTAVE * math.log2(max(interval, SHORTEST) / SHORTEST))
        table[min(place, len(table) - 1)] += 1
    return table


def _intervals(onsets: Sequence[float]) -> list[float]:
    return [later - sooner for sooner, later in itertools.pairwise(onsets)]


def _median(onsets: Sequence[float]) -> float:
    intervals = sorted(_intervals(onsets))
    if not intervals:
        return math.nan
    middle = len(intervals) // 2
    return intervals[middle] if len(intervals) % 2 else sum(intervals[middle - 1 : middle + 1]) / 2


def _ratio(density: float, prompt: float) -> float:
    return density / prompt if prompt > 0 else math.nan


def _within(ratio: float) -> float:
    return float(0.5 <= ratio <= 2) if math.isfinite(ratio) else math.nan
