"""The processes of one training (ranks), which torchrun starts, and tensors sharded among them."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from segue.core.collectives import alone
from segue.core.errors import TrainingError

Result = TypeVar("Result")

#: Ranks may wait long for the first one, which fits or saves by itself. If a rank dies, torchrun
#: notices and ends the others.
PATIENCE = timedelta(hours=24)
SECONDS_TO_SPEAK = 2.0  # that a rank has to print its error before torchrun ends it


@dataclass(frozen=True)
class Ranks:
    """The place of this process: its number and the count, in all and on this machine."""

    rank: int = 0
    size: int = 1
    local: int = 0
    local_size: int = 1

    @property
    def first(self) -> bool:
        """Return whether this is the rank that reports and writes."""
        return self.rank == 0


def ranks() -> Ranks:
    """Return the ranks of torchrun's environment, else one, or raise ``TrainingError``."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return Ranks()
    try:
        return Ranks(*(int(os.environ[name]) for name in names))
    except (KeyError, ValueError) as error:
        raise TrainingError(
            "the environment", f"sets RANK, but not all of {', '.join(names)} ({error})",
            "start the processes with torchrun",
        ) from error  # fmt: skip


def device_of_rank(device: str) -> str:
    """Return this rank's own GPU for ``cuda``; other devices as they are."""
    return f"cuda:{ranks().local}" if device == "cuda" and ranks().size > 1 else device


def connect(device: torch.device) -> Ranks:
    """Connect the ranks, unless they are connected or there is only one."""
    own = ranks()
    if own.size > 1 and not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=PATIENCE)
    return own


def disconnect() -> None:
    """End the connection of the ranks, if there is one."""
    if distributed.is_initialized():
        gc.collect()  # objects that hold a process group must go before it
        distributed.destroy_process_group()


def wait_for_all() -> None:
    """Wait until every rank has come here."""
    on_first(lambda: None)


def on_first(work: Callable[[], Result]) -> Result:
    """Run ``work`` on the first rank and give its result, which must be small, to all.

    Raises:
        Exception: on the first rank, whatever ``work`` raised.
        SystemExit: on the others if it did, so that the error is printed once.
    """
    if alone():
        return work()
    shared: list[object] = [None, False]  # the result, and whether there is one
    if ranks().first:
        try:
            shared = [work(), True]
        except Exception:  # the others wait: let them know before the error ends this rank
            distributed.broadcast_object_list(shared, src=0)
            raise
    distributed.broadcast_object_list(shared, src=0)
    if not shared[1]:
        _leave()
    return shared[0]  # type: ignore[return-value]


def on_each(work: Callable[[], Result]) -> Result:
    """Run ``work`` on every rank; if it fails on one, end all and let one report.

    Raises:
        Exception: on the lowest rank that failed, whatever ``work`` raised.
        SystemExit: on the others if one failed.
    """
    if alone():
        return work()
    own = ranks()
    failure: Exception | None = None
    try:
        result = work()
    except Exception as error:
        failure = error
    # The lowest rank that failed speaks; the number of ranks stands for "none failed".
    speaker = torch.tensor(own.size if failure is None else own.rank)
    distributed.all_reduce(speaker, distributed.ReduceOp.MIN)
    if failure is not None and int(speaker) == own.rank:
        raise failure
    if int(speaker) < own.size:
        _leave()
    return result


def _leave() -> NoReturn:
    """End silently, after the rank that reports: torchrun ends all ranks when one has ended."""
    time.sleep(SECONDS_TO_SPEAK)
    raise SystemExit(2)


# --- sharded tensors: checkpoints hold whole ones, so that any number of ranks can resume -------


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that lies on this rank."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor, keep: bool = True) -> Tensor:
    """Return a copy of a whole tensor on the CPU; every rank must call this.

    Args:
        keep: False on ranks that do not need the copy; they get an empty tensor.
    """
    full = tensor.detach()
    full = full.full_tensor() if isinstance(full, DTensor) else full
    return full.cpu().contiguous().clone() if keep else torch.empty(0)


def as_sharded(full: Tensor, like: Tensor) -> Tensor:
    """Return this rank's shard of ``full`` if ``like`` is sharded, else ``full`` itself."""
    if not isinstance(like, DTensor) or isinstance(full, DTensor):
        return full
    # Every rank has read the whole tensor: nothing needs to be sent.
    full = full.to(like.device)
    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)


def is_sharded(module: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def accept_whole_tensors(component: nn.Module) -> None:
    """Let ``load_state_dict`` of a sharded component take whole tensors."""

    def shard(module: nn.Module, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
        now = module.state_dict(prefix=prefix)
        for name, value in state.items():
            if name in now and value.shape == now[name].shape:
                state[name] = as_sharded(value, now[name])

    component.register_load_state_dict_pre_hook(shard)
