"""The processes of one training: torchrun starts them and tells each its number."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
from torch import distributed

from segue.core.collectives import alone
from segue.core.errors import TrainingError

Result = TypeVar("Result")

#: Ranks may wait long for the first one, which fits or saves by itself. That a rank died is seen
#: by torchrun, which ends the others.
PATIENCE = timedelta(hours=24)
HEARD_SECONDS = 2.0  # that a rank has to say what went wrong


@dataclass(frozen=True)
class Ranks:
    """Where this process stands among all.

    Attributes:
        rank: its number.
        size: how many there are.
        local: its number on this machine.
        local_size: how many there are on this machine.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    local_size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that reports and writes."""
        return self.rank == 0


def ranks() -> Ranks:
    """As torchrun's environment says; one process without it.

    Raises:
        TrainingError: if the environment says half of it only.
    """
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
    """``cuda`` as this rank's own GPU; other devices as they are."""
    return f"cuda:{ranks().local}" if device == "cuda" and ranks().size > 1 else device


def connect(device: torch.device) -> Ranks:
    """Let the ranks find each other, unless they have or there is only one."""
    own = ranks()
    if own.size > 1 and not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=PATIENCE)
    return own


def disconnect() -> None:
    """Say goodbye, if there is anybody to say it to."""
    if distributed.is_initialized():
        gc.collect()  # what still holds a group would be taken apart after it, or at exit
        distributed.destroy_process_group()


def wait_for_all() -> None:
    """Go on when every rank has come here."""
    on_first(lambda: None)


def on_first(work: Callable[[], Result]) -> Result:
    """Let the first rank do something and give every rank its result, which must be small.

    Raises:
        Exception: on the first rank, as ``work`` did.
        SystemExit: on the others if it did: one of them has said why.
    """
    if alone():
        return work()
    own = ranks()
    told: list[object] = [None, False]
    if own.first:
        try:
            told = [work(), True]
        except Exception:
            distributed.broadcast_object_list(told, src=0)
            raise
    distributed.broadcast_object_list(told, src=0)
    if not told[1]:
        _leave()
    return told[0]  # type: ignore[return-value]


def on_each(work: Callable[[], Result]) -> Result:
    """Let every rank do something of its own; if one cannot, all end and one says why.

    Raises:
        Exception: on the first of the ranks that failed, as ``work`` did.
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
    speaker = torch.tensor(own.size if failure is None else own.rank)
    distributed.all_reduce(speaker, distributed.ReduceOp.MIN)
    if failure is not None and int(speaker) == own.rank:
        raise failure
    if int(speaker) < own.size:
        _leave()
    return result


def _leave() -> NoReturn:
    """End without a word, after the rank that says why: when one has ended, torchrun ends all."""
    time.sleep(HEARD_SECONDS)
    raise SystemExit(2)
