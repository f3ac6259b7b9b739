"""Compute together with the other processes of a run; alone, each function is the identity."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed

_by_itself = False


def summed(x: Tensor) -> Tensor:
    """The sum of all ranks' tensors; ``x`` may be written to."""
    if not alone():
        distributed.all_reduce(x)
    return x


def from_first(x: Tensor) -> Tensor:
    """The tensor of the first rank; others give one of the same shape, which may be written to."""
    if alone():
        return x
    x = x.contiguous()
    distributed.broadcast(x, src=0)
    return x


def of_own_rows(draw: Callable[[int], Tensor], rows: int) -> Tensor:
    """Return random numbers for the rows of this rank's batch, as one process would draw them.

    The first rank draws for the rows of all ranks, which are shared out in turn.

    Args:
        draw: returns numbers for so many rows.
        rows: of this rank; every rank has as many.
    """
    if alone():
        return draw(rows)
    rank, size = distributed.get_rank(), distributed.get_world_size()
    return from_first(draw(rows * size))[rank::size]


def places_among_ranks(counts: Tensor) -> tuple[Tensor, int]:
    """Return where items of this rank are among those of all, as one process would have them.

    Row i of rank r is row ``i * ranks + r`` of a batch, as ``segue.data.epochs`` shares it out.

    Args:
        counts: ``[B]`` items of each row; every rank has as many rows.

    Returns:
        The place of each item of this rank, and the number of all items.
    """
    every = counts[:, None]
    rank = 0
    if not alone():
        rank, size = distributed.get_rank(), distributed.get_world_size()
        parts = [torch.empty_like(counts) for _ in range(size)]
        distributed.all_gather(parts, counts.contiguous())
        every = torch.stack(parts, dim=1)
    ends = every.reshape(-1).cumsum(0).reshape(every.shape)
    starts = (ends - every)[:, rank]
    inside = torch.arange(int(counts.sum()), device=counts.device)
    inside -= (counts.cumsum(0) - counts).repeat_interleave(counts)
    return starts.repeat_interleave(counts) + inside, int(ends[-1, -1])


def everywhere(holds: bool, device: torch.device) -> bool:
    """Return whether something holds on every rank."""
    if alone():
        return holds
    flag = torch.tensor(int(holds), device=device)
    distributed.all_reduce(flag, op=distributed.ReduceOp.MIN)
    return bool(flag)


@contextmanager
def by_itself() -> Iterator[None]:
    """Let each process compute as if it were alone, because all compute the same."""
    global _by_itself
    _by_itself = True
    try:
        yield
    finally:
        _by_itself = False


def alone() -> bool:
    """Return whether this process computes alone: no other one is connected."""
    if _by_itself or not (distributed.is_available() and distributed.is_initialized()):
        return True
    return distributed.get_world_size() == 1
