"""Count times between onsets, and compare counts of any kind."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

CHORD_SECONDS = 0.05  # onsets closer than that are one
SHORTEST, OCTAVES, BINS_PER_OCTAVE = 0.05, 6, 2  # of times between onsets: 0.05 to 3.2 s


def joined(onsets: Sequence[float]) -> list[float]:
    """Sort onsets and join those of a chord."""
    kept: list[float] = []
    for onset in sorted(onsets):
        if not kept or onset - kept[-1] >= CHORD_SECONDS:
            kept.append(onset)
    return kept


def interval_table(onsets: Sequence[float]) -> Float[Tensor, "12"]:
    """Count the times between onsets in each half octave from 0.05 s on."""
    table = [0.0] * (OCTAVES * BINS_PER_OCTAVE)
    for interval in intervals_of(onsets):
        place = math.floor(BINS_PER_OCTAVE * math.log2(max(interval, SHORTEST) / SHORTEST))
        table[min(place, len(table) - 1)] += 1
    return torch.tensor(table, dtype=torch.float64)


def intervals_of(onsets: Sequence[float]) -> list[float]:
    """Return the times from each onset to the next."""
    return [later - sooner for sooner, later in itertools.pairwise(onsets)]


def jensen_shannon(a: Float[Tensor, "V"], b: Float[Tensor, "V"]) -> float:
    """Return the divergence in bits of two distributions given as counts: 0 the same, 1 nothing in
    common (Lin, IEEE Trans. Inf. Theory 37(1), 1991). NaN if either counts nothing."""
    if not a.sum() > 0 or not b.sum() > 0:
        return math.nan
    first, second = a.double() / a.sum(), b.double() / b.sum()
    divergence = _entropy((first + second) / 2) - (_entropy(first) + _entropy(second)) / 2
    return min(1.0, max(0.0, divergence))


def _entropy(shares: Float[Tensor, "V"]) -> float:
    return float(-torch.special.xlogy(shares, shares).sum() / math.log(2))
