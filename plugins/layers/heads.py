"""Embedding tables and output heads, one of each per level.

Shape legend: B batch, Q levels, N frames, D width, V codebook size.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from segue.plugins.layers.transformer import INIT_STD


def cross_entropy(logits: Float[Tensor, "M V"], ids: Int64[Tensor, " M"]) -> Float[Tensor, " M"]:
    """Return the negative log-likelihood of every id, in nats."""
    if logits.dtype != torch.float64:
        logits = logits.float()  # half precision would round the result to steps of 0.03
    return functional.cross_entropy(logits, ids, reduction="none")


class LevelEmbedding(nn.Module):
    """One table per level, stored as one.

    Each level has ``rows`` entries: V codes and any extra ones, so that no two levels and no
    special token ever share a row.
    """

    offsets: Tensor

    def __init__(self, num_levels: int, rows: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(num_levels * rows, width)
        nn.init.normal_(self.table.weight, std=INIT_STD)
        self.register_buffer("offsets", torch.arange(num_levels) * rows, persistent=False)

    def forward(self, ids: Int64[Tensor, "B N Q"]) -> Float[Tensor, "B N Q D"]:
        # Level q's codes lie in rows of their own: code 7 of two levels are two tokens.
        return self.table(ids + self.offsets)

    def summed(self, ids: Int64[Tensor, "B Q"]) -> Float[Tensor, "B D"]:
        """Return the sum over the levels of one frame, in few calls: each step makes them."""
        return functional.embedding(ids + self.offsets, self.table.weight).sum(dim=1)

    def level(self, ids: Int64[Tensor, " B"], level: int) -> Float[Tensor, "B D"]:
        """Return the embeddings of one level's ids; -1 is the last level."""
        levels = self.offsets.shape[0]
        rows = self.table.num_embeddings // levels
        return self.table(ids + level % levels * rows)


class LevelHeads(nn.Module):
    """One linear head per level over exactly the V codes of that level: no other can be drawn."""

    def __init__(self, num_levels: int, width: int, codebook_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_levels, width, codebook_size))
        nn.init.normal_(self.weight, std=INIT_STD)

    def nll(
        self, hidden: Float[Tensor, "B N Q D"], ids: Int64[Tensor, "B Q N"]
    ) -> Float[Tensor, "B Q N"]:
        """Return the negative log-likelihood, in nats, of every id under its own level's head."""
        logits = self.logits(hidden).transpose(0, 1)
        losses = cross_entropy(logits.flatten(0, 2), ids.transpose(0, 1).flatten())
        return losses.view(logits.shape[:3]).transpose(0, 1)

    def logits(self, hidden: Float[Tensor, "B N Q D"]) -> Float[Tensor, "B Q N V"]:
        """Return the logits of every code of each level."""
        batch, frames, levels, width = hidden.shape
        by_level = hidden.permute(2, 0, 1, 3).reshape(levels, batch * frames, width)
        return torch.bmm(by_level, self.weight).unflatten(1, (batch, frames)).transpose(0, 1)
