"""Tokens of piano music: one for what each register of the keyboard plays.

A token is the nearest of the clusters of a register's features (product quantisation: Jégou et al.,
IEEE TPAMI 2011). One cluster of everything cannot hold several voices, whose combinations are too
many.

Shape legend: B batch, Q levels, N frames (tokens), D features, R = onsets of a token + 1, K keys.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from segue.core.interfaces import Ids, Tokens
from segue.plugins.tokenizers.common.kmeans import WindowedTokenizer
from segue.plugins.tokenizers.common.likeness import Heard, likeness
from segue.plugins.tokenizers.common.options import KEYS, RegisterOptions


class RegisterTokenizer(WindowedTokenizer):
    """Cluster onsets and sounding keys by register."""

    config: RegisterOptions
    order: Tensor
    weighting: Tensor

    def __init__(self, config: RegisterOptions) -> None:
        rows = config.pool + 1  # features of a key
        sizes = [rows * (last - first) for first, last in config.registers]
        super().__init__(config, sum(sizes), sizes)
        # Features of a register lie together: onsets of each frame, then what sounds.
        key = torch.arange(rows * KEYS).reshape(rows, KEYS)
        order = torch.cat([key[:, first:last].flatten() for first, last in config.registers])
        weighting = torch.full((rows, KEYS), config.onset_weight)
        weighting[-1] = 1.0
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("weighting", weighting.flatten()[order], persistent=False)

    def weights(self) -> Float[Tensor, "D"]:
        """Undo the normalisation: a rare key is as important as another."""
        return self.weighting * self.deviation

    def by_register(
        self, onsets: Float[Tensor, "N P K"], sounding: Float[Tensor, "N 1 K"]
    ) -> Float[Tensor, "N D"]:
        """Return features from how much each key is struck, by frame, and sounds."""
        return torch.cat([onsets, sounding], dim=1).flatten(1)[:, self.order]

    def keys(self, ids: Ids) -> Float[Tensor, "B N R K"]:
        """Return what tokens say of each key: how much it is struck, by frame, and sounds."""
        points = self.vectors(ids) / self.weighting + self.mean
        return points[..., self.order.argsort()].unflatten(2, (-1, KEYS))

    @torch.no_grad()
    def likeness(self, known: Tokens, new: Tokens) -> Float[Tensor, "B"]:
        """Return how much key, rhythm and density stay as they were."""
        heard: dict[bytes, Heard] = {}  # candidates share what is known

        def hear(row: Int64[Tensor, "Q N"]) -> Heard:
            key = row.cpu().numpy().tobytes()
            if key not in heard:
                keys = self.keys(row[None])[0].cpu()
                heard[key] = Heard(keys, float(1 / self.spec.frame_rate))
            return heard[key]

        pairs = zip(known.rows(), new.rows(), strict=True)
        return torch.tensor([likeness(hear(before), hear(after)) for before, after in pairs])
