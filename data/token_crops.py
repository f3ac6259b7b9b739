"""Draw batches of aligned crops of a token store, for one stage."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy
import torch
from jaxtyping import Bool
from torch import Tensor

from segue.core.interfaces import StageBatch, Tokens
from segue.core.spec import SliceSpec, StageSpec
from segue.data.epochs import WHOLE, Drawn, Epochs, Share, mixed, permuted
from segue.data.token_store import TokenStore

GROUPS_IN_MEMORY = 1024

Array = numpy.ndarray[Any, Any]
Piece = tuple[int, int, int]  # recording, first frame, frame after the last


class TokenCrops:
    """Draw a whole store once an epoch, in crops that lie within one group (speaker, piece).

    The recordings of a group are joined in an order that each epoch draws. Of the line they make
    up, taken as a circle, as many crops are taken as cover it, evenly from a random place on; they
    overlap a little. In a group of one recording they lie evenly along it, so that it is not joined
    to itself. A group shorter than a crop is taken whole. Batch ``step`` depends on the seed and
    the step alone.
    """

    def __init__(
        self, store: TokenStore, stage: StageSpec, crop_seconds: float, batch_size: int, seed: int
    ) -> None:
        store.check(stage)
        self._store, self._stage = store, stage
        self._batch_size, self._seed = batch_size, seed
        # Crops are counted in frames of the slowest stream: every stream has whole frames there.
        self._slowest = min((stage.target, *stage.given), key=lambda part: part.frame_rate)
        self._frames = store.frames_of(self._slowest.stream)
        self._crop = max(1, int(crop_seconds * self._slowest.frame_rate))
        # The recordings of group g are _members[_begins[g] : _begins[g + 1]].
        self._members = numpy.argsort(store.group, kind="stable")
        counts = numpy.bincount(store.group, minlength=len(store.groups))
        self._begins = numpy.concatenate([[0], numpy.cumsum(counts)])
        self._sizes = numpy.bincount(store.group, self._frames, len(counts)).astype(numpy.int64)
        self._slots = -(-self._sizes // self._crop)
        lengths = self._sizes.clip(max=self._crop)
        weights = store.weights[self._members[self._begins[:-1]]]
        self.epochs = Epochs(self._slots, lengths, weights, batch_size, seed)
        self._orders: OrderedDict[tuple[int, int], tuple[Array, Array]] = OrderedDict()

    def batch(self, step: int, share: Share = WHOLE) -> StageBatch:
        """Draw the crops of one step."""
        drawn = self.epochs.rows(step, share.rows(self._batch_size))
        crops = [list(self._pieces(row)) for row in drawn]
        parts = (self._stage.target, *self._stage.given)
        target, *given = (Tokens.stack([self._cut(crop, part) for crop in crops]) for part in parts)
        return StageBatch(target, tuple(given), self._ends(crops, target))

    def _pieces(self, row: Drawn) -> Iterator[Piece]:
        """Yield the pieces of recordings that make up one crop."""
        order, ends = self._order(row.unit, row.turn)
        size, slots = int(self._sizes[row.unit]), int(self._slots[row.unit])
        places = size if len(order) > 1 else size - self._crop + 1  # where a crop may begin
        start, chance = 0, mixed(self._seed, row.turn, row.unit, 1)
        if slots > 1:
            # One crop from each stretch of the line, at a place of its own: all frames are learnt
            # from.
            start = (row.slot * places + chance % places) // slots
        stop = start + min(size, self._crop)
        while start < stop:
            inside = start % size
            index = int(ends.searchsorted(inside, side="right"))
            begin = int(ends[index - 1]) if index else 0
            last = min(int(ends[index]), inside + stop - start)
            yield int(order[index]), inside - begin, last - begin
            start += last - inside

    def _order(self, group: int, turn: int) -> tuple[Array, Array]:
        """Return the recordings of a group in this turn's order, and where each one ends."""
        if (group, turn) not in self._orders:
            members = self._members[self._begins[group] : self._begins[group + 1]]
            chance = mixed(self._seed, turn, group)
            order = members[permuted(numpy.arange(len(members)), len(members), chance)]
            self._orders[group, turn] = order, numpy.cumsum(self._frames[order])
            if len(self._orders) > GROUPS_IN_MEMORY:
                self._orders.popitem(last=False)
        self._orders.move_to_end((group, turn))
        return self._orders[group, turn]

    def _ends(self, crops: Sequence[Sequence[Piece]], target: Tokens) -> Bool[Tensor, "B N"]:
        """Mark the last frame of each recording: at joins, and at a crop's end only if the
        recording ends there too. A crop's end that is not a true end must not teach the model to
        stop."""
        ends = torch.zeros(target.ids.shape[0], target.ids.shape[2], dtype=torch.bool)
        ratio = int(self._stage.target.frame_rate / self._slowest.frame_rate)
        for row, crop in enumerate(crops):
            frames = 0
            for index, first, last in crop:
                frames += (last - first) * ratio
                ends[row, frames - 1] = last == int(self._frames[index])
        return ends

    def _cut(self, crop: Sequence[Piece], part: SliceSpec) -> Tensor:
        # Crops are cut where frames of all streams begin, so that slices stay aligned.
        ratio = int(part.frame_rate / self._slowest.frame_rate)
        levels = slice(part.start, part.stop)
        rows = [
            self._store.read(index, part.stream, levels, first * ratio, last * ratio)
            for index, first, last in crop
        ]
        return torch.cat(rows, dim=1)
