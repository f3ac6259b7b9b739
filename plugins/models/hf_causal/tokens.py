"""The vocabulary of audio: every token that a backbone reads in place of text."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from segue.core.interfaces import Tokens
from segue.core.spec import StageSpec
from segue.plugins.layers.decoding import pack, take
from segue.plugins.layers.flattened import flattened
from segue.plugins.layers.heads import LevelEmbedding
from segue.plugins.layers.transformer import INIT_STD


class AudioTokens(nn.Module):
    """Embeddings of a start, of a separator per given slice, and of all codes level by level.

    Args:
        stage: what is predicted from what.
        width: D of the backbone's embeddings.
    """

    def __init__(self, stage: StageSpec, width: int) -> None:
        super().__init__()
        self.given = nn.ModuleList(
            LevelEmbedding(given.num_levels, given.codebook_size, width) for given in stage.given
        )
        self.separators = nn.ParameterList(
            nn.Parameter(torch.randn(width) * INIT_STD) for _ in stage.given
        )
        self.target = LevelEmbedding(stage.target.num_levels, stage.target.codebook_size, width)
        self.start = nn.Parameter(torch.randn(width) * INIT_STD)

    @torch.no_grad()
    def resemble(self, rows: Float[Tensor, "V D"]) -> None:
        """Draw all embeddings anew with the mean and spread that ``rows`` have in each channel:
        a pretrained backbone then sees inputs of the kind that it knows."""
        mean, spread = rows.mean(dim=0), rows.std(dim=0)
        for parameter in self.parameters():
            parameter.copy_(mean + spread * torch.randn_like(parameter))

    def forward(
        self, given: tuple[Tokens, ...], target: Tokens, left: bool
    ) -> tuple[Float[Tensor, "B N D"], Bool[Tensor, "B N"]]:
        """Given slices, then the target: frame by frame and, within a frame, level by level.

        Args:
            left: padding goes to the left, else to the right.

        Returns:
            Embeddings and where they are valid; N is the length of the longest row.
        """
        leads, tables = (*self.separators, self.start), (*self.given, self.target)
        parts = [
            flattened(table, lead, tokens)
            for table, lead, tokens in zip(tables, leads, (*given, target), strict=True)
        ]
        x, valid = (torch.cat(columns, dim=1) for columns in zip(*parts, strict=True))
        if bool(valid.all()):
            return x, valid
        longest = int(valid.sum(dim=1).max())
        order = pack(valid, left)
        order = order[:, -longest:] if left else order[:, :longest]
        return take(x, order), take(valid, order)

    def step(self, ids: Int64[Tensor, " B"], level: int) -> Float[Tensor, "B D"]:
        """Embeddings of one target token per row; level -1 is the last one."""
        return self.target.level(ids, level)
