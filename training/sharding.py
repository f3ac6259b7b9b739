"""Whole tensors of sharded ones and back, so that checkpoints know nothing of ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def local(tensor: Tensor) -> Tensor:
    """What of a tensor lies on this rank."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor, keep: bool = True) -> Tensor:
    """A copy of the whole of a tensor on the CPU; every rank must ask for it.

    Args:
        keep: False where it is not needed: an empty tensor is returned.
    """
    full = tensor.detach()
    full = full.full_tensor() if isinstance(full, DTensor) else full
    return full.cpu().contiguous().clone() if keep else torch.empty(0)


def as_sharded(full: Tensor, like: Tensor) -> Tensor:
    """The shard of ``full`` that belongs here, if ``like`` is sharded; else ``full`` itself."""
    if not isinstance(like, DTensor) or isinstance(full, DTensor):
        return full
    full = full.to(like.device)
    # Every rank has read the whole: nothing need be sent.
    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)


def is_sharded(module: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def let_load_whole(component: nn.Module) -> None:
    """Let ``load_state_dict`` of a sharded component take whole tensors."""

    def cut(module: nn.Module, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
        now = module.state_dict(prefix=prefix)
        for name, value in state.items():
            if name in now and value.shape == now[name].shape:
                state[name] = as_sharded(value, now[name])

    component.register_load_state_dict_pre_hook(cut)


def whole_state(component: nn.Module, keep: bool = True) -> dict[str, Tensor]:
    """``component.state_dict()`` with whole tensors, on the ranks that keep it."""
    state: Mapping[str, Tensor] = component.state_dict()
    found = {name: whole(value, keep) for name, value in state.items()}
    return found if keep else {}
