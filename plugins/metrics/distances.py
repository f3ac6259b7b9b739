"""Distances of distributions."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


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
