"""Choose the crop of each row of each step: epochs without replacement, rows of a batch alike in
length.

An epoch goes once through all crops of a data set in random order. All of it follows from the seed
and the number of the step, so that a resumed run goes on in the middle of an epoch, and ranks need
no words with each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy
import torch

from segue.core.errors import DataError

SEED_STRIDE = 1_000_003


@dataclass(frozen=True)
class Share:
    """Rows ``index``, ``index + count``, ... of each batch.

    A row depends on the seed, the step and its own number alone, so that any number of ranks, and
    any number of pieces that gradients are accumulated over, draw the same batch together.
    """

    index: int = 0
    count: int = 1

    def rows(self, batch_size: int) -> range:
        """Return the numbers of the rows, or raise ``DataError`` if they share out unevenly."""
        if batch_size % self.count:
            raise DataError(
                "training.batch_size",
                f"{batch_size} rows cannot be shared evenly by {self.count} ranks and pieces",
                f"make it a multiple of {self.count}",
            )
        return range(self.index, batch_size, self.count)


WHOLE = Share()


def crop_generators(seed: int, step: int, rows: range, batch_size: int) -> list[torch.Generator]:
    """Return a random generator for each row."""
    random = torch.Generator().manual_seed(seed * SEED_STRIDE + step)
    seeds = torch.randint(2**62, (batch_size,), generator=random).tolist()
    return [torch.Generator().manual_seed(seeds[row]) for row in rows]


Numbers = numpy.ndarray[Any, numpy.dtype[numpy.int64]]

POOL_BATCHES = 32  # batches whose crops are sorted by length together
ROUNDS = 4
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def mixed(*numbers: int) -> int:
    """Mix numbers into 64 bits that look random (the finaliser of SplitMix64)."""
    state = 0
    for number in numbers:
        state = (state + _GOLDEN + number) & _MASK
        state = ((state ^ state >> 30) * _MIX[0]) & _MASK
        state = ((state ^ state >> 27) * _MIX[1]) & _MASK
        state ^= state >> 31
    return state


def permuted(positions: Numbers, size: int, seed: int) -> Numbers:
    """Return where a random permutation of ``0 .. size - 1`` takes some positions, without making
    it.

    A Feistel network over the next even number of bits; what falls outside is sent through again
    (cycle walking, Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    low, bits = numpy.uint64(2**half - 1), numpy.uint64(half)
    keys = [numpy.uint64(mixed(seed, number)) for number in range(ROUNDS)]
    values = positions.astype(numpy.uint64)
    outside = numpy.ones(values.shape, bool)
    while outside.any():
        left, right = values[outside] >> bits, values[outside] & low
        for key in keys:
            left, right = right, left ^ (_scrambled(right ^ key) & low)
        values[outside] = left << bits | right
        outside = values >= size
    return values.astype(numpy.int64)


def _scrambled(values: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
    with numpy.errstate(over="ignore"):
        values = (values ^ values >> numpy.uint64(30)) * numpy.uint64(_MIX[0])
        values = (values ^ values >> numpy.uint64(27)) * numpy.uint64(_MIX[1])
    return values ^ values >> numpy.uint64(31)


@dataclass(frozen=True)
class Drawn:
    """One row of a batch."""

    unit: int  # number of the recording or group that is cropped
    slot: int  # which of the unit's crops it is
    # How often all crops were gone through before; what else is drawn at random for the crop
    # depends on it.
    turn: int


class Epochs:
    """Draw a new order of units (recordings, groups), each with some crops, in each epoch.

    Args:
        slots: ``[U]`` crops of each unit; 0 leaves it out.
        lengths: ``[U]`` of its crops, in whatever unit of time.
        weights: ``[U]``: with 2, each crop is drawn twice an epoch; with 0.5, every other epoch.
        batch_size: rows of a step, over all ranks.
    """

    def __init__(
        self, slots: Numbers, lengths: Numbers, weights: Numbers, batch_size: int, seed: int
    ) -> None:
        self._ends = numpy.cumsum(slots * weights.astype(numpy.float64))
        self._slots, self._lengths, self._weights = slots, lengths, weights
        self._batch_size, self._seed = batch_size, seed
        total = float(self._ends[-1]) if len(self._ends) else 0.0
        self.size = max(1, round(total)) if total else 0
        self.steps = -(-self.size // batch_size)
        self._stride = total / max(1, self.size)
        self._pool: tuple[tuple[int, int], Numbers] = ((-1, -1), numpy.empty(0, numpy.int64))

    def rows(self, step: int, rows: Iterable[int]) -> list[Drawn]:
        """Return what some rows of a step's batch are.

        The last batch of an epoch is filled up with crops that it had before.
        """
        epoch, inside = divmod(step, self.steps)
        pool, batch = divmod(inside, POOL_BATCHES)
        if self._pool[0] != (epoch, pool):
            self._pool = ((epoch, pool), self._sorted_pool(epoch, pool))
        turns, crops = self._pool[1][:, batch]
        return [self._drawn(int(crops[row]), epoch, int(turns[row])) for row in rows]

    def _sorted_pool(self, epoch: int, pool: int) -> Numbers:
        """Return ``[2, P, B]``: turns and crops of a few batches, alike in length within each."""
        first = pool * POOL_BATCHES
        batches = min(POOL_BATCHES, self.steps - first)
        positions = numpy.arange(first, first + batches)[:, None] * self._batch_size
        positions = (positions + numpy.arange(self._batch_size)).reshape(-1)
        # The last batch runs over the end of the epoch, into crops that were drawn already.
        repeats, positions = numpy.divmod(positions, self.size)
        crops = permuted(positions, self.size, mixed(self._seed, epoch))
        # No crop may have one turn twice: what is drawn for it at random depends on the turn.
        turns = repeats + epoch * -(-self.steps * self._batch_size // self.size)
        lengths = self._lengths[self._unit(self._place(crops, epoch))]
        # Alike lengths in a batch waste less on padding; pools keep the order of batches random.
        table = numpy.stack([turns, crops])[:, numpy.argsort(lengths, kind="stable")]
        order = permuted(numpy.arange(batches), batches, mixed(self._seed, epoch, pool))
        return table.reshape(2, batches, -1)[:, order]

    def _place(self, crops: Any, epoch: int) -> Any:
        """Return where crops lie on the line of all weights, from a start that each epoch draws."""
        start = mixed(self._seed, epoch, 1) / 2**64
        return (crops + start) * self._stride

    def _unit(self, place: Any) -> Any:
        return numpy.minimum(self._ends.searchsorted(place, side="right"), len(self._ends) - 1)

    def _drawn(self, crop: int, epoch: int, turn: int) -> Drawn:
        place = float(self._place(numpy.int64(crop), epoch))
        unit = int(self._unit(place))
        begin = float(self._ends[unit - 1]) if unit else 0.0
        slot = int((place - begin) / float(self._weights[unit]))
        return Drawn(unit, min(slot, int(self._slots[unit]) - 1), turn)
