"""Compute means with confidence intervals and the number of items that they rest on."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from segue.core.metrics import group_numbers

Interval = tuple[float, float] | tuple[None, None]


def estimate(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean of ``count`` values, its 95 % interval (normal; None for a single value), and
    the extremes that a mean hides.

    Values that are not finite are left out; ``left_out`` counts them where there are any. Nothing
    else has no mean.
    """
    finite = [value for value in values if math.isfinite(value)]
    found = dict.fromkeys(("mean", "low", "high", "lowest", "highest"), None) | {
        "count": len(finite)
    }
    if finite:
        mean = statistics.fmean(finite)
        found |= {"mean": mean, "lowest": min(finite), "highest": max(finite)}
    if len(finite) > 1:
        error = statistics.stdev(finite) / len(finite) ** 0.5 * 1.96
        found |= {"low": mean - error, "high": mean + error}
    missing = len(values) - len(finite)
    return found | ({"left_out": missing} if missing else {})


def summarise(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Estimate every column of ``rows``, ready for JSON."""
    return {key: estimate([row[key] for row in rows]) for key in rows[0]}


def grouped_summary(
    rows: Sequence[Mapping[str, float]], groups: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Estimate every column of ``rows`` with intervals over groups.

    Args:
        rows: figures of items, all with the same names.
        groups: of each row, the speaker or piece: what is drawn anew (see ``bootstrap_interval``).

    Returns:
        As ``summarise``, with the number of ``groups``. A figure of one group has no interval.
    """
    found = summarise(rows)
    for key, figure in found.items():
        known = [index for index, row in enumerate(rows) if math.isfinite(row[key])]
        member = group_numbers([groups[index] for index in known])
        figure["groups"] = len(member.unique())
        if figure["groups"] < 2:
            figure["low"] = figure["high"] = None
            continue
        values = torch.tensor([rows[index][key] for index in known], dtype=torch.float64)
        weighted = partial(_weighted_mean, values, member)
        figure["low"], figure["high"] = bootstrap_interval(weighted, figure["groups"])
    return found


def _weighted_mean(values: Float[Tensor, "I"], member: Tensor, drawn: Float[Tensor, "G"]) -> float:
    weights = drawn[member]
    return float(weights @ values / weights.sum())


def bootstrap_interval(
    statistic: Callable[[Float[Tensor, "G"]], float], groups: int, draws: int = 500
) -> Interval:
    """Return a 95 % interval of a figure that rests on groups of data, such as speakers.

    Groups are drawn anew with replacement (Efron, 1979): items of one speaker are alike, so an
    interval over items would be too narrow.

    Args:
        statistic: the figure, given how often each group was drawn; NaN if it cannot be had.

    Returns:
        The 2.5th and the 97.5th percentile, with a fixed seed; None if no draw had a figure.
    """
    random = torch.Generator().manual_seed(0)
    found = []
    for _ in range(draws):
        chosen = torch.randint(groups, (groups,), generator=random)
        found.append(statistic(torch.bincount(chosen, minlength=groups).double()))
    finite = torch.tensor([value for value in found if math.isfinite(value)], dtype=torch.float64)
    if not len(finite):
        return None, None
    low, high = torch.quantile(finite, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def jackknife_interval(statistic: Callable[[Float[Tensor, "G"]], float], groups: int) -> Interval:
    """Return a 95 % interval of a figure that is biased by the number of groups, such as a
    divergence.

    Drawing groups anew leaves fewer different ones, so a distance between two sets grows with each
    draw and its percentiles lie above it. Here each group is left out once instead (Tukey's
    jackknife; Efron & Tibshirani, An Introduction to the Bootstrap, ch. 11).

    Args:
        statistic: the figure, given how often each group counts; NaN if it cannot be had.

    Returns:
        The figure less and plus 1.96 standard errors; None for fewer than two groups, or where a
        figure cannot be had.
    """
    if groups < 2:
        return None, None
    middle = statistic(torch.ones(groups, dtype=torch.float64))
    found = [statistic(weights) for weights in 1 - torch.eye(groups, dtype=torch.float64)]
    if not all(math.isfinite(value) for value in (middle, *found)):
        return None, None
    error = statistics.pstdev(found) * math.sqrt(groups - 1) * 1.96
    return middle - error, middle + error


def entropy(counts: Float[Tensor, "..."]) -> float:
    """Return the entropy in bits of the distribution that all ``counts`` make together."""
    shares = counts.double() / counts.sum()
    return float(-torch.special.xlogy(shares, shares).sum() / math.log(2))


def mutual_information(table: Float[Tensor, "A B"]) -> float:
    """Return the bits that either variable reveals of the other.

    Args:
        table: how often each value of one met each value of the other. What few counts suggest is
            too much: the bias is about ``(A - 1) (B - 1) / (2 n ln 2)`` bits.
    """
    return entropy(table.sum(1)) + entropy(table.sum(0)) - entropy(table)
