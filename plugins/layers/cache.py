"""Keys and values of past positions, kept so that a new token costs one step."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from segue.plugins.layers.pages import large_pages, used_pages

Heads = Float[Tensor, "B H N d"]
LARGEST_HALF = torch.finfo(torch.float16).max


class KeyValueCache:
    """Preallocated keys and values of every layer for one batch of sequences.

    Position p lies in slot ``p % capacity``. If the capacity is the width of the model's sliding
    window, each new position overwrites the one that just left the window, so a sequence of any
    length needs constant memory. All layers write the same positions; ``advance`` follows.

    Args:
        ring: whether new positions may overwrite old ones; otherwise a full cache raises.
        halves: keep IEEE halves, beyond 65504 the largest one: a step of many rows spends most of
            its time reading them. Only the kernel can, so nothing else may extend a prefix.
    """

    def __init__(self, depth: int, capacity: int, ring: bool = False, halves: bool = False) -> None:
        self.capacity, self.ring, self.halves = capacity, ring, halves
        # Counts positions, not slots: in a ring it grows beyond the capacity.
        self.length = 0
        self._first = 0  # columns before it are padding, which nothing sees
        #: ``[1]``, the slot of the next position, for steps of fixed shapes: they see all slots,
        #: and a mask hides the empty ones.
        self.fixed_slot: Tensor | None = None
        self.layers: list[tuple[Tensor, Tensor] | None] = [None] * depth

    def reserve(self, like: Heads) -> None:
        """Allocate for keys like ``[B, H, n, d]`` before any position is known."""
        shape = (len(self.layers), 2, *like.shape[:2], self.capacity, like.shape[3])
        dtype = torch.float16 if self.halves else like.dtype
        if like.device.type == "cpu":
            size = math.prod(shape) * dtype.itemsize
            # The kernel reads nothing but what was stored.
            memory = used_pages(size, self) if self.halves else large_pages(size)
            slots = memory.view(dtype).view(shape)
        else:
            slots = like.new_zeros(shape)
        # By index: views made by iteration must not be written to while gradients are on.
        self.layers = [(slots[layer, 0], slots[layer, 1]) for layer in range(len(self.layers))]

    def row(self, row: int, first: int) -> KeyValueCache:
        """Return the cache of one row whose columns before ``first`` are padding.

        It writes to this cache's memory, and is for storing the row's prefix in one call.
        """
        one = KeyValueCache(len(self.layers), self.capacity, self.ring, self.halves)
        # The row's own positions start behind its padding, in the same slots as those of the batch.
        one.length = one._first = first
        one.layers = [(k[row : row + 1], v[row : row + 1]) for k, v in filter(None, self.layers)]
        return one

    def repeat(self, row: int, count: int) -> None:
        """Give a row the first ``count`` slots of the row before it."""
        for slots in (slots for stored in filter(None, self.layers) for slots in stored):
            slots[row, :, :count] = slots[row - 1, :, :count]

    def extend(self, layer: int, keys: Heads, values: Heads) -> tuple[Heads, Heads]:
        """Store new positions ``[B, H, n, d]`` of one layer; return all that they may see.

        The result is in the order of slots. A first block longer than a ring is returned as it is,
        because its early positions must still see each other; the ring keeps its end.
        """
        if self.layers[layer] is None:
            # Not in the constructor: autocast decides the dtype of keys only when they come.
            self.reserve(keys)
        stored = self.layers[layer]
        assert stored is not None
        kept_as: tuple[Tensor, ...] = keys, values
        if self.halves:
            kept_as = tuple(x.clamp(-LARGEST_HALF, LARGEST_HALF).half() for x in kept_as)
        pairs = list(zip(stored, kept_as, strict=True))
        if self.fixed_slot is not None:
            for slots, new in pairs:
                # The slot is a tensor, so that a compiled or captured step need not be made again
                # for it.
                slots.index_copy_(2, self.fixed_slot, new)
            return stored
        start, count = self.length, keys.shape[2]
        end = start + count
        if end > self.capacity and not self.ring:
            raise ValueError(f"{end} positions do not fit a cache of {self.capacity}")
        if end > self.capacity and (count > 1 or self._first):
            if start > self._first:
                raise ValueError("several positions at once do not fit a ring that is in use")
            # Only the last positions stay in sight; earlier ones would be overwritten at once.
            kept = torch.arange(max(start, end - self.capacity), end, device=keys.device)
            for slots, new in pairs:
                slots[:, :, kept % self.capacity] = new[:, :, kept - start]
            return keys, values
        # Once the ring is full, every slot holds a position that is still within the window.
        filled = min(end, self.capacity)
        for slots, new in pairs:
            slots.narrow(2, start % self.capacity, count).copy_(new)
        first = self._first
        if start == first:
            return keys, values
        return stored[0][:, :, first:filled], stored[1][:, :, first:filled]

    def advance(self, count: int) -> None:
        """Count ``count`` positions that every layer has stored."""
        self.length += count
