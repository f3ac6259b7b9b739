"""How attention knows where things are: rotary angles or a learnt bias by distance.

Shape legend: B batch, N queries, K keys, H heads, d channels per head.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

Positions = Float[Tensor, "B N"]
Rotary = tuple[Float[Tensor, "B N 1 1 d"], Float[Tensor, "B N 1 1 d"]]


def rotate(x: Float[Tensor, "B N 2 H d"], rotary: Rotary) -> Float[Tensor, "B N 2 H d"]:
    """Turn channel pairs ``(i, i + d/2)`` by their position's angle."""
    cosine, sine = rotary
    # Rolling by half swaps the halves; the minus sign of the rotation is in ``sine``.
    return torch.addcmul(x * cosine, x.roll(x.shape[-1] // 2, -1), sine).to(x.dtype)


class RotaryPositions(nn.Module):
    """Angles of rotary positions (Su et al., arXiv 2104.09864)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, positions: Positions) -> Rotary:
        """Cosine and signed sine ``[B, N, 1, 1, d]`` of every position's angles."""
        # Not a buffer, which a change of the model's number format would round: far positions
        # would turn by other angles.
        half = torch.arange(0, self.size, 2, dtype=torch.float32, device=positions.device)
        angles = positions[:, :, None].float() * 10000.0 ** -(half / self.size)
        cosine, sine = angles.cos(), angles.sin()
        full = torch.cat([cosine, cosine], -1), torch.cat([-sine, sine], -1)
        return full[0][:, :, None, None], full[1][:, :, None, None]


class RelativeBias(nn.Module):
    """A learnt bias per head and distance, shared by all layers.

    Distances are sorted into buckets as in T5 (Raffel et al., arXiv 1910.10683): each sign has
    half of them; small distances have one each, larger ones share them logarithmically.
    """

    buckets: Tensor

    def __init__(self, heads: int, num_buckets: int, reach: int) -> None:
        super().__init__()
        self.reach = reach
        self.weight = nn.Parameter(torch.zeros(heads, num_buckets))
        distances = torch.arange(-reach, reach + 1)
        self.register_buffer("buckets", self._bucket(distances, num_buckets), persistent=False)

    def _bucket(self, distances: Tensor, num_buckets: int) -> Int64[Tensor, " M"]:
        half = num_buckets // 2
        exact = half // 2
        size = distances.abs()
        ratio = torch.log(size.clamp_min(exact) / exact) / math.log(max(2, self.reach / exact))
        far = (exact + ratio * (half - exact)).long().clamp_max(half - 1)
        return torch.where(size < exact, size, far) + half * (distances < 0)

    def table(self) -> Float[Tensor, "H M"]:
        """The bias at every distance from ``-reach`` to ``reach``."""
        return self.weight[:, self.buckets]

    def forward(self, queries: Positions, keys: Float[Tensor, "B K"]) -> Float[Tensor, "B H N K"]:
        """The bias of every key for every query, by the distance from key to query."""
        distances = (queries[:, :, None] - keys[:, None]).round().long()
        index = distances.clamp(-self.reach, self.reach) + self.reach
        return self.table()[:, index].transpose(0, 1)
