"""Refuse components that learn in buffers and do not add up what the ranks learn.

Gradients of ranks are averaged, buffers are not: only those of the first rank would be saved.
"""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import NoReturn

import torch
from jaxtyping import Float
from torch import Tensor, distributed

from segue.core.collectives import by_itself
from segue.core.errors import TrainingError
from segue.core.interfaces import Component
from segue.data.epochs import Share
from segue.training.engine import Engine
from segue.training.prefetch import Batches
from segue.training.ranks import on_each, ranks


def check_equal(component: Component, part: str) -> None:
    """Refuse counts that differ between ranks, and warn of other such buffers.

    Every rank must call this.
    """
    saved = _saved_buffers(component)
    if ranks().size == 1 or not saved:
        return
    least = torch.stack([_fingerprint(value) for value in saved.values()])
    most = least.clone()
    distributed.all_reduce(least, distributed.ReduceOp.MIN)
    distributed.all_reduce(most, distributed.ReduceOp.MAX)
    for name, low, high in zip(saved, least, most, strict=True):
        if low[0] != high[0] and low[1]:
            _refuse(part, f"buffer {name} differs between ranks")
        if low[0] != high[0] and ranks().first:
            text = f"{part}: buffer {name} differs between ranks, the first rank's is saved"
            warnings.warn(text, stacklevel=2)


def check_added_up(
    engine: Engine, component: Component, part: str, batches: Batches, batch_size: int
) -> None:
    """Refuse counts of each rank's own rows that are equal by chance, as with equal lengths.

    Every rank must call this. Three steps are tried; what they change is put back.
    """
    counts = list(_counts(component))
    share = engine.shares[0]
    halves = Share(share.index, 2 * share.count)
    alone = engine.ranks.size == 1 or not engine.has_gradients
    if alone or not counts or batch_size % halves.count:
        return

    def growth(share: Share, together: bool = False) -> dict[str, Tensor]:
        batch = on_each(lambda: batches(0, share)).to(component.device)
        frozen = (p for p in component.named_parameters() if not p[1].requires_grad)
        changed = dict([*component.named_buffers(), *frozen])
        before = {name: value.clone() for name, value in changed.items()}
        torch.manual_seed(0)
        with torch.no_grad(), nullcontext() if together else by_itself():
            engine.losses(batch)
        found = {name: changed[name] - before[name] for name in counts}
        for name, value in changed.items():
            value.copy_(before[name])
        return found

    all_rows, own_rows, half = growth(share, together=True), growth(share), growth(halves)
    for name, grown in own_rows.items():
        if grown.equal(all_rows[name]) and not grown.equal(half[name]):
            _refuse(part, f"buffer {name} counts each rank's own rows")


def _counts(component: Component) -> dict[str, Tensor]:
    kinds = (torch.int64, torch.int32)
    return {n: b for n, b in _saved_buffers(component).items() if b.dtype in kinds}


def _saved_buffers(component: Component) -> dict[str, Tensor]:
    saved = component.state_dict().keys()
    return {n: b for n, b in component.named_buffers() if n in saved and b.numel()}


def _fingerprint(value: Tensor) -> Float[Tensor, "2"]:
    """Return a number in which each place weighs differently, as sums may be equal by chance, and
    whether all are whole: counts, in whichever type they are held."""
    flat = value.detach().double().flatten().cpu()
    number = flat @ torch.arange(1.0, len(flat) + 1, dtype=torch.float64).sqrt()
    return torch.stack([number, flat.equal(flat.round()) * torch.ones_like(number)])


def _refuse(part: str, problem: str) -> NoReturn:
    fix = "add them up with segue.core.collectives.summed, or train in one process"
    raise TrainingError(part, f"{problem}: training_step adds up its own rows only", fix)
