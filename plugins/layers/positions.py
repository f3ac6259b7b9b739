"""Give attention its positions: rotary angles, or a learnt bias by distance.

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
    """Turn channel pairs ``(i, i + d/2)`` by the angle of their position."""
    cosine, sine = rotary
    # Rolling by half swaps the halves; the minus sign of the rotation is in ``sine``.
    return torch.addcmul(x * cosine, x.roll(x.shape[-1] // 2, -1), sine).to(x.dtype)


class RotaryPositions(nn.Module):
    """Angles of rotary positions (Su et al., arXiv 2104.09864) for ``size`` channels per head."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, positions: Positions) -> Rotary:
        """Return cosine and signed sine ``[B, N, 1, 1, d]`` of every position's angles."""
        # Not a buffer: converting the model to half precision would round it, and far positions
        # would turn by other angles.
        half = torch.arange(0, self.size, 2, dtype=torch.float32, device=positions.device)
        angles = positions[:, :, None].float() * 10000.0 ** -(half / self.size)
        cosine, sine = angles.cos(), angles.sin()
        full = torch.cat([cosine, cosine], -1), torch.cat([-sine, sine], -1)
        return full[0][:, :, None, None], full[1][:, :, None, None]


class RelativeBias(nn.Module):
    """A learnt bias per head and distance, shared by all layers (T5, arXiv 1910.10683).

    Distances are sorted into buckets, half of them for each sign: small distances have a bucket
    each, larger ones share buckets on a logarithmic scale up to ``reach``.
    """

    buckets: Tensor

    def __init__(self, heads: int, num_buckets: int, reach: int) -> None:
        super().__init__()
        self.reach = reach
        self.weight = nn.Parameter(torch.zeros(heads, num_buckets))
        half = num_buckets // 2
        exact = half // 2
        distances = torch.arange(-reach, reach + 1)
        size = distances.abs()
        ratio = torch.log(size.clamp_min(exact) / exact) / math.log(max(2, reach / exact))
        # The order of far keys matters less than that of near ones.
        far = (exact + ratio * (half - exact)).long().clamp_max(half - 1)
        buckets = torch.where(size < exact, size, far) + half * (distances < 0)
        self.register_buffer("buckets", buckets, persistent=False)

    def table(self) -> Float[Tensor, "H M"]:
        """Return the bias at every distance from ``-reach`` to ``reach``."""
        return self.weight[:, self.buckets]

    def forward(self, queries: Positions, keys: Float[Tensor, "B K"]) -> Float[Tensor, "B H N K"]:
        """Return the bias of every key for every query, by the distance from key to query."""
        # Positions may be fractions, where slices have other frame rates than the target.
        distances: Int64[Tensor, "B N K"] = (queries[:, :, None] - keys[:, None]).round().long()
        index = distances.clamp(-self.reach, self.reach) + self.reach
        return self.table()[:, index].transpose(0, 1)
