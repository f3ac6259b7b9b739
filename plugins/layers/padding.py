"""Move the padding of ragged rows to one side.

Shape legend: B batch, Q levels, N positions or frames.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from segue.core.interfaces import Tokens


def pack(valid: Bool[Tensor, "B N"], left: bool) -> Int64[Tensor, "B N"]:
    """Return the order of each row that moves its padding to one side and keeps the rest in order.

    Args:
        valid: ``[B, N]``, False at padding, wherever it lies.
        left: move padding to the left (for generation: all rows end in the same column) or to the
            right (for training: causal attention then needs no mask).
    """
    return (valid if left else ~valid).to(torch.uint8).argsort(dim=1, stable=True)


def take(x: Tensor, order: Int64[Tensor, "B N"]) -> Tensor:
    """Return ``x`` ``[B, K, ...]`` at ``order`` ``[B, N]``, row by row."""
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    return x[rows, order]


def left_padded(
    tokens: Tokens, more: int
) -> tuple[Int64[Tensor, "B Q N"], Int64[Tensor, "B N+more"]]:
    """Return the codes of rows that all end in the same column, and the frame of each column.

    Args:
        tokens: ragged rows, padded on the right.
        more: number of columns after the last one of the codes.

    Returns:
        Codes ``[B, Q, N]`` and frames ``[B, N + more]``; frames are negative at padding, where
        codes mean nothing.
    """
    count = tokens.ids.shape[2]
    columns = torch.arange(count + more, device=tokens.ids.device)
    frame = columns - (count - tokens.lengths)[:, None]
    shifted = take(tokens.ids.transpose(1, 2), frame[:, :count].clamp_min(0)).transpose(1, 2)
    return shifted, frame
