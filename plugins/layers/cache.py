"""Keys and values of past positions, kept so that a new token costs one step."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Heads = Float[Tensor, "B H N d"]


class KeyValueCache:
    """Preallocated keys and values of every layer of one batch of sequences.

    Position p lies in slot ``p % capacity``: with a sliding window as wide as the capacity, what
    is overwritten is what no later position sees. All layers write the same positions; ``advance``
    is called once they have.

    Args:
        depth: layers.
        capacity: slots.
        ring: whether older positions may be overwritten; else a full cache refuses more.
    """

    def __init__(self, depth: int, capacity: int, ring: bool = False) -> None:
        self.capacity = capacity
        self.length = 0
        self.ring = ring
        #: Set for steps of fixed shapes: ``[1]``, the slot that the next position goes to. All
        #: slots are then returned, whether filled or not.
        self.fixed_slot: Tensor | None = None
        self.layers: list[tuple[Tensor, Tensor] | None] = [None] * depth

    def reserve(self, like: Heads) -> None:
        """Allocate for keys shaped like ``[B, H, n, d]``, before any position is known."""
        self.layers = [(self._allocate(like), self._allocate(like)) for _ in self.layers]

    def extend(self, layer: int, keys: Heads, values: Heads) -> tuple[Heads, Heads]:
        """Store ``[B, H, n, d]`` new positions of one layer; return those that they may see.

        These come in the order of their slots. Several positions that do not fit the ring together
        with older ones can only be the first of all: they are returned as they are, and the last
        ones of them are kept.
        """
        stored = self.layers[layer]
        if stored is None:
            # Allocated here rather than in the constructor: only now the dtype is known, which
            # autocast may make another one than the weights'.
            stored = (self._allocate(keys), self._allocate(values))
            self.layers[layer] = stored
        if self.fixed_slot is not None:
            stored[0].index_copy_(2, self.fixed_slot, keys)
            stored[1].index_copy_(2, self.fixed_slot, values)
            return stored
        start, count = self.length, keys.shape[2]
        end = start + count
        if end > self.capacity and not self.ring:
            raise ValueError(f"{end} positions do not fit a cache of {self.capacity}")
        if end > self.capacity and count > 1:
            return self._first(stored, keys, values)
        slot = start % self.capacity
        stored[0].narrow(2, slot, count).copy_(keys)
        stored[1].narrow(2, slot, count).copy_(values)
        filled = min(end, self.capacity)
        return stored[0].narrow(2, 0, filled), stored[1].narrow(2, 0, filled)

    def advance(self, count: int) -> None:
        """Every layer has stored ``count`` further positions."""
        self.length += count

    def _first(
        self, stored: tuple[Tensor, Tensor], keys: Heads, values: Heads
    ) -> tuple[Heads, Heads]:
        if self.length:
            raise ValueError("several positions at once do not fit a ring that is in use")
        kept = torch.arange(keys.shape[2] - self.capacity, keys.shape[2], device=keys.device)
        stored[0][:, :, kept % self.capacity] = keys[:, :, kept]
        stored[1][:, :, kept % self.capacity] = values[:, :, kept]
        return keys, values

    def _allocate(self, like: Heads) -> Tensor:
        batch, heads, _, size = like.shape
        return torch.zeros(batch, heads, self.capacity, size, dtype=like.dtype, device=like.device)
