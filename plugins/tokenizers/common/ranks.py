"""Agreement between the ranks of a distributed training; on a single process nothing is done."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def summed(x: Tensor) -> Tensor:
    """The sum of all ranks' tensors; ``x`` may be written to."""
    if is_distributed():
        dist.all_reduce(x)
    return x


def from_first(x: Tensor) -> Tensor:
    """The tensor of the first rank; others give one of the same shape, which may be written to."""
    if is_distributed():
        x = x.contiguous()
        dist.broadcast(x, src=0)
    return x


def everywhere(holds: bool, device: torch.device) -> bool:
    """Whether something holds on every rank."""
    if not is_distributed():
        return holds
    flag = torch.tensor(int(holds), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag)
