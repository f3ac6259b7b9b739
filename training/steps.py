"""One optimisation step: losses of all pieces, gradients of all ranks, and the optimizers' move."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from segue.core.config import TrainingConfig
from segue.core.interfaces import StageBatch, WaveBatch
from segue.data.share import SEED_STRIDE, Share
from segue.training.checkpoints import Learner
from segue.training.engine import Engine
from segue.training.schedule import learning_rate

Batch = WaveBatch | StageBatch
RANK_STRIDE = 1 << 40  # between the seeds of pieces
LEAST_SCALE = 1e-4  # of losses in half precision: it is not why gradients overflow below it


def shares(engine: Engine, config: TrainingConfig) -> list[Share]:
    """The pieces of each batch that this rank learns from."""
    rank, size = engine.ranks.rank, engine.ranks.size
    count = size * config.accumulate
    return [Share(piece * size + rank, count) for piece in range(config.accumulate)]


def learn(
    engine: Engine,
    learner: Learner,
    config: TrainingConfig,
    step: int,
    draw: int,
    pieces: Sequence[Batch],
) -> tuple[dict[str, float], float]:
    """One step; a loss or gradient that is not finite changes nothing but is reported.

    Args:
        draw: the number that dropout and noise depend on.
        pieces: this rank's, on the CPU.

    Returns:
        Figures as if the whole batch had been learnt from at once, and its weight.
    """
    versus = learner.adversary is not None and step >= config.adversary_from
    optimizers = [learner.optimizer]
    if versus:
        assert learner.adversary_optimizer is not None
        optimizers.append(learner.adversary_optimizer)
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    figures, weight = _gradients(engine, learner, config, draw, pieces, versus)
    names = ("gradient_norm", "adversary_gradient_norm")
    for name, optimizer in zip(names, optimizers, strict=False):
        figures[name] = engine.clip(optimizer, config.gradient_clip)
    _move(engine, config, step, figures, optimizers)
    return figures, weight


def _gradients(
    engine: Engine,
    learner: Learner,
    config: TrainingConfig,
    draw: int,
    pieces: Sequence[Batch],
    versus: bool,
) -> tuple[dict[str, float], float]:
    """Add up the gradients of all pieces, and of all ranks with the last one."""
    component = learner.component
    weights = [component.weight_of(piece) for piece in pieces]
    total = max(engine.total([sum(weights)])[0], 1e-9)
    own_shares = shares(engine, config)
    sums: dict[str, Tensor] = {}
    for number, (piece, weight) in enumerate(zip(pieces, weights, strict=True)):
        _seed(config.seed, draw, own_shares[number].index)
        with engine.kept_to_itself(number + 1 < len(pieces), versus):
            losses = engine.losses(piece.to(component.device), versus)
            # Ranks' gradients are averaged, not added.
            _backward(engine, learner, losses, weight * engine.ranks.size / total, versus)
        for key, value in losses.items():
            part = value.detach().double() * (weight / total)
            sums[key] = sums[key] + part if key in sums else part
    values = torch.stack(list(sums.values())).tolist()
    return dict(zip(sums, engine.total(values), strict=True)), total


def _backward(
    engine: Engine, learner: Learner, losses: dict[str, Tensor], factor: float, versus: bool
) -> None:
    """Both losses come from one pass; each gradient goes to its own side only."""
    if not versus:
        engine.backward(losses["loss"] * factor)
        return
    adversary = learner.adversary
    assert adversary is not None
    own, theirs = (
        [p for p in side.parameters() if p.requires_grad] for side in (learner.component, adversary)
    )
    engine.backward(losses["adversary_loss"] * factor, retain_graph=True, inputs=theirs)
    engine.backward(losses["loss"] * factor, inputs=own)


def _move(
    engine: Engine,
    config: TrainingConfig,
    step: int,
    figures: dict[str, float],
    optimizers: Sequence[torch.optim.Optimizer],
) -> None:
    """Let each optimizer step at its rate, if all is finite; else say so."""
    rate = learning_rate(config, step)
    rates = (rate, rate * config.adversary_learning_rate / config.learning_rate)
    checked = ("loss", "gradient_norm", "adversary_loss", "adversary_gradient_norm")
    finite = {name: math.isfinite(figures[name]) for name in checked if name in figures}
    if finite["loss"] and not finite["gradient_norm"] and _can_go_down(engine.scaler):
        # Too large a scale for half precision: the optimizer will not move, the scale goes down.
        figures |= {"gradient_norm": 0.0, "overflow": 1.0}
    elif not all(finite.values()):
        figures["loss"] = math.nan
        engine.pass_over()
        return
    for optimizer, own_rate in zip(optimizers, rates, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = own_rate
        engine.step(optimizer)


def _can_go_down(scaler: Any) -> bool:
    return scaler is not None and scaler.get_scale() > LEAST_SCALE


def _seed(seed: int, draw: int, piece: int) -> None:
    torch.manual_seed(seed * SEED_STRIDE + draw + piece * RANK_STRIDE)
    random.seed(seed * SEED_STRIDE + draw + piece * RANK_STRIDE)
