"""Compute together with the other processes of a run; alone, each function is the identity."""

from __future__ import annotations

from collections.abc import Iterator
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
