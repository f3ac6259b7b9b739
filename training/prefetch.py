"""Batches of coming steps, made while the present one is learnt from."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from segue.core.errors import DataError, SegueError
from segue.core.interfaces import StageBatch, WaveBatch
from segue.data.share import Share

Batch = WaveBatch | StageBatch
Batches = Callable[[int, Share], Batch]

AHEAD = 2  # steps, of the thread and of each process


class Feed:
    """The pieces of step after step: ``batches(draw, share)`` for each share.

    A batch depends on its draw and share alone, so whoever makes it, and when, changes nothing.

    Args:
        batches: makes one piece.
        shares: the pieces of a step that this rank learns from.
        workers: processes that make them; 0 leaves it to a thread of this one.
    """

    def __init__(self, batches: Batches, shares: Sequence[Share], workers: int = 0) -> None:
        self._make = _Pieces(batches, shares)
        self._workers = workers
        self._thread: ThreadPoolExecutor | None = None
        self._coming: deque[Future[list[Batch]]] = deque()
        self._draws: Iterator[int] = iter(())
        self._items: Iterator[Any] | None = None

    def start(self, draws: Sequence[int]) -> None:
        """Forget what was made ahead; the next steps are these."""
        self.close()
        self._draws = iter(draws)
        if self._workers:
            self._items = iter(_loader(self._make, draws, self._workers))
            return
        self._thread = ThreadPoolExecutor(1, "segue-feed")
        for _ in range(AHEAD):
            self._order()

    def take(self) -> list[Batch]:
        """The pieces of the next step.

        Raises:
            SegueError: as ``batches`` did.
        """
        if self._items is not None:
            return _taken(self._items)
        future = self._coming.popleft()
        self._order()
        return future.result()

    def close(self) -> None:
        """End the thread, or the processes."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
        self._thread, self._items = None, None
        self._coming.clear()

    def _order(self) -> None:
        draw = next(self._draws, None)
        if draw is not None and self._thread is not None:
            self._coming.append(self._thread.submit(self._make, draw))


class _Pieces(Dataset[Any]):
    """Draw to pieces; as a data set, it tells errors as items, which pickling leaves whole."""

    def __init__(self, batches: Batches, shares: Sequence[Share]) -> None:
        self._batches, self._shares = batches, shares

    def __call__(self, draw: int) -> list[Batch]:
        return [self._batches(draw, share) for share in self._shares]

    def __getitem__(self, draw: int) -> list[Batch] | SegueError:
        try:
            return self(draw)
        except SegueError as error:
            return error


def _loader(pieces: _Pieces, draws: Sequence[int], workers: int) -> DataLoader[Any]:
    return DataLoader(
        pieces,
        batch_size=None,
        sampler=draws,
        num_workers=workers,
        prefetch_factor=AHEAD,
        # Forked, they share the data set's tables; elsewhere forking is not safe.
        multiprocessing_context="fork" if sys.platform == "linux" else "spawn",
        generator=torch.Generator(),  # not the global one, whose state would move
    )


def _taken(items: Iterator[Any]) -> list[Batch]:
    try:
        item = next(items)
    except RuntimeError as error:
        raise DataError(
            "training.workers", f"a process that prepares batches ended ({error})",
            "start again, with fewer workers if memory was short: training goes on",
        ) from error  # fmt: skip
    if isinstance(item, SegueError):
        raise item
    pieces: list[Batch] = item
    return pieces
