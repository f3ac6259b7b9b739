"""Keys and values of past positions, kept so that a new token costs one step."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Heads = Float[Tensor, "B H N d"]


class KeyValueCache:
    """Preallocated keys and values of every layer of one batch of sequences.

    All layers write the same positions; ``advance`` is called once they have.
    """

    def __init__(self, depth: int, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._layers: list[tuple[Tensor, Tensor] | None] = [None] * depth

    def extend(self, layer: int, keys: Heads, values: Heads) -> tuple[Heads, Heads]:
        """Store ``[B, H, n, d]`` new positions of one layer; return all that are known of it."""
        stored = self._layers[layer]
        if stored is None:
            # Allocated here rather than in the constructor: only now the dtype is known, which
            # autocast may make another one than the weights'.
            stored = (self._allocate(keys), self._allocate(values))
            self._layers[layer] = stored
        start, count = self.length, keys.shape[2]
        end = start + count
        if end > self.capacity:
            raise ValueError(f"{end} positions do not fit a cache of {self.capacity}")
        stored[0].narrow(2, start, count).copy_(keys)
        stored[1].narrow(2, start, count).copy_(values)
        return stored[0].narrow(2, 0, end), stored[1].narrow(2, 0, end)

    def advance(self, count: int) -> None:
        """Every layer has stored ``count`` further positions."""
        self.length += count

    def _allocate(self, like: Tensor) -> Tensor:
        batch, heads, _, size = like.shape
        return torch.empty(batch, heads, self.capacity, size, dtype=like.dtype, device=like.device)
