"""Mask the padding of ragged batches."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


def length_mask(lengths: Int64[Tensor, "B"], size: int) -> Bool[Tensor, "B S"]:
    """Return True at the first ``lengths`` of ``size`` places of each row."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def without_padding(x: Float[Tensor, "B S"], lengths: Int64[Tensor, "B"]) -> Float[Tensor, "B S"]:
    """Return ``x`` with zeros beyond each row's length, whatever is there (NaN included)."""
    return torch.where(length_mask(lengths, x.shape[1]), x, 0.0)
