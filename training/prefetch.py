"""Prepare the batches of coming steps while the present one is learnt from."""

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
from segue.data.epochs import Share

Batch = WaveBatch | StageBatch
Batches = Callable[[int, Share], Batch]

AHEAD = 2  # steps that the thread, or each process, prepares in advance


class Prefetcher:
    """Make the pieces of batch after batch: ``batches(number, share)`` for each share.

    A batch depends on its number and share alone, so it does not matter who makes it, or when.

    Args:
        shares: the pieces of a batch that this rank learns from.
        workers: processes that make them; with 0, a thread of this process does.
    """

    def __init__(self, batches: Batches, shares: Sequence[Share], workers: int = 0) -> None:
        self._make = _Pieces(batches, shares)
        self._workers = workers
        self._thread: ThreadPoolExecutor | None = None
        self._coming: deque[Future[list[Batch]]] = deque()
        self._numbers: Iterator[int] = iter(())
        self._items: Iterator[Any] | None = None

    def start(self, numbers: Sequence[int]) -> None:
        """Drop what was prepared, and prepare the batches of these numbers."""
        # Prepared batches have the numbers from before a rollback.
        self.close()
        self._numbers = iter(numbers)
        if self._workers:
            self._items = iter(_loader(self._make, numbers, self._workers))
            return
        self._thread = ThreadPoolExecutor(1, "segue-batches")
        for _ in range(AHEAD):
            self._submit()

    def take(self) -> list[Batch]:
        """Return the pieces of the next batch, or raise what ``batches`` raised."""
        if self._items is not None:
            return _taken(self._items)
        future = self._coming.popleft()
        self._submit()  # the thread makes the next batch while this one is learnt from
        return future.result()

    def close(self) -> None:
        """End the thread or the processes."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
        self._thread, self._items = None, None
        self._coming.clear()

    def _submit(self) -> None:
        number = next(self._numbers, None)
        if number is not None and self._thread is not None:
            self._coming.append(self._thread.submit(self._make, number))


class _Pieces(Dataset[Any]):
    """Map a number to pieces. As a data set, return errors as items: pickling keeps them whole."""

    def __init__(self, batches: Batches, shares: Sequence[Share]) -> None:
        self._batches, self._shares = batches, shares

    def __call__(self, number: int) -> list[Batch]:
        return [self._batches(number, share) for share in self._shares]

    def __getitem__(self, number: int) -> list[Batch] | SegueError:
        try:
            return self(number)
        except SegueError as error:
            return error


def _loader(pieces: _Pieces, numbers: Sequence[int], workers: int) -> DataLoader[Any]:
    return DataLoader(
        pieces,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=AHEAD,
        # Forked processes share the data set's tables; forking is unsafe outside of Linux.
        multiprocessing_context="fork" if sys.platform == "linux" else "spawn",
        generator=torch.Generator(),  # the global one would change its state
    )


def _taken(items: Iterator[Any]) -> list[Batch]:
    try:
        item = next(items)
    except RuntimeError as error:
        raise DataError(
            "training.workers", f"a process that prepares batches ended ({error})",
            "run the same command again to go on, with fewer workers if memory was short",
        ) from error  # fmt: skip
    if isinstance(item, SegueError):
        raise item
    pieces: list[Batch] = item
    return pieces
