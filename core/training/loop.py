"""The one training loop: every part that is trained by gradient goes through ``train``."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from segue.core.config.schema import TrainingConfig
from segue.core.errors import TrainingError
from segue.core.interfaces import Component, StageBatch, WaveBatch
from segue.core.records import Kind
from segue.core.training.checkpoints import (
    Learner,
    newest_checkpoint,
    resume,
    save_checkpoint,
    step_back,
    step_of,
    way_back,
)
from segue.core.training.guard import LOG, Guard, note_rollback, rollbacks

if TYPE_CHECKING:
    from segue.core.manager import PluginHost

Batch = WaveBatch | StageBatch
Batches = Callable[[int], Batch]
Report = Callable[[str, int, int, Mapping[str, float]], None]

LOG_EVERY = 10


@dataclass
class TrainingRun:
    """All that one run needs; ``directory`` is where it saves and what it resumes from."""

    part: str
    kind: Kind
    use: str
    component: Component
    config: TrainingConfig
    directory: Path
    train_batches: Batches
    valid_batches: Batches | None
    host: PluginHost
    notes: dict[str, Any] = field(default_factory=dict)
    report: Report | None = None


def train(run: TrainingRun) -> Path:
    """Train until ``run.config.steps``, resuming from the newest checkpoint if there is one.

    Batches, dropout and codebook noise of a step depend on the seed, the step and the number of
    rollbacks alone, so a run that was killed and resumed repeats what it would have done.

    Returns:
        The directory of the last checkpoint.

    Raises:
        TrainingError: if the loss stays non-finite, or the component reports trouble, in spite of
            ``run.config.rollbacks``.
        CheckpointError: if the newest checkpoint was written with other options.
    """
    learner = make_learner(run)
    step = resume(run, learner)
    guard = Guard(run.component)
    attempt = len(rollbacks(run.directory))
    run.component.train()
    while step < run.config.steps:
        started = time.perf_counter()
        losses = _step(run, learner, step, attempt)
        step += 1
        trouble = guard.watch(step, losses)
        if trouble is not None:
            step = _roll_back(run, learner, step, trouble)
            guard.reset()
            attempt += 1
            continue
        losses["seconds"] = time.perf_counter() - started
        _after_step(run, learner, step, losses)
    return newest_checkpoint(run.directory, fitted=False) or run.directory


def _roll_back(run: TrainingRun, learner: Learner, step: int, trouble: str) -> int:
    """Go back to an earlier checkpoint, if there is one and it was not tried too often.

    Returns:
        The step to go on from.
    """
    candidates = way_back(run.directory)
    tried = len(rollbacks(run.directory))
    if tried >= run.config.rollbacks or not candidates:
        again = f", after {tried} rollbacks" if tried else ""
        raise TrainingError(
            run.part,
            f"{trouble}{again}",
            f"lower training.learning_rate (now {run.config.learning_rate:g}), or allow more"
            f" training.rollbacks (now {run.config.rollbacks})",
        )
    back_to = step_of(candidates[0])
    # Noted first: killed in between, the run goes on from the newest checkpoint with other crops.
    note_rollback(run.directory, step, trouble, back_to)
    back_to = step_back(run, learner, candidates)
    if run.report is not None:
        run.report(run.part, back_to, run.config.steps, {"rolled_back_from": float(step)})
    return back_to


def make_learner(run: TrainingRun) -> Learner:
    """A fresh optimizer, and the component's adversary with one of its own."""
    optimizer = make_optimizer(run.component, run.config)
    torch.manual_seed(run.config.seed)
    adversary = run.component.adversary()
    if adversary is None:
        return Learner(optimizer)
    adversary = adversary.to(run.component.device).train()
    return Learner(optimizer, adversary, make_optimizer(adversary, run.config))


def make_optimizer(module: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW; vectors (biases, norms) are not decayed."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Linear warm-up, then cosine decay to zero at the last step."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def _step(run: TrainingRun, learner: Learner, step: int, attempt: int) -> dict[str, float]:
    """One optimisation step; a non-finite loss or gradient changes nothing but is reported.

    Args:
        attempt: rollbacks so far; each draws other crops and noise.
    """
    draw = step + attempt * run.config.steps
    _seed(run.config.seed, draw)
    batch = _to(run.train_batches(draw), run.component.device)
    if learner.adversary is None or step < run.config.adversary_from:
        return _minimise(run, learner, step, run.component.training_step(batch))
    return _play(run, learner, step, run.component.adversarial_step(batch, learner.adversary))


def _minimise(
    run: TrainingRun, learner: Learner, step: int, losses: Mapping[str, Tensor]
) -> dict[str, float]:
    learner.optimizer.zero_grad(set_to_none=True)
    losses["loss"].backward()
    values = {key: float(value.detach()) for key, value in losses.items()}
    clip = run.config.gradient_clip
    norm = nn.utils.clip_grad_norm_(run.component.parameters(), clip)
    values["gradient_norm"] = float(norm)
    rate = learning_rate(run.config, step)
    _update(values, ("loss", "gradient_norm"), ((learner.optimizer, rate),))
    return values


def _play(
    run: TrainingRun, learner: Learner, step: int, losses: Mapping[str, Tensor]
) -> dict[str, float]:
    """One move of both sides of an adversarial training, judged before either has moved.

    Both losses come from one pass through the adversary; each gradient goes to its own side only.
    """
    adversary, opponent = learner.adversary, learner.adversary_optimizer
    assert adversary is not None and opponent is not None
    sides = (run.component, adversary)
    own, theirs = ([p for p in side.parameters() if p.requires_grad] for side in sides)
    learner.optimizer.zero_grad(set_to_none=True)
    opponent.zero_grad(set_to_none=True)
    losses["adversary_loss"].backward(retain_graph=True, inputs=theirs)
    losses["loss"].backward(inputs=own)
    values = {key: float(value.detach()) for key, value in losses.items()}
    clip = run.config.gradient_clip
    values["gradient_norm"] = float(nn.utils.clip_grad_norm_(own, clip))
    values["adversary_gradient_norm"] = float(nn.utils.clip_grad_norm_(theirs, clip))
    rate = learning_rate(run.config, step)
    opposing = rate * run.config.adversary_learning_rate / run.config.learning_rate
    checked = ("loss", "gradient_norm", "adversary_loss", "adversary_gradient_norm")
    _update(values, checked, ((learner.optimizer, rate), (opponent, opposing)))
    return values


def _update(
    values: dict[str, float],
    checked: Sequence[str],
    optimizers: Sequence[tuple[torch.optim.Optimizer, float]],
) -> None:
    """Let each optimizer step at its rate, if all that is ``checked`` is finite; else say so."""
    if not all(math.isfinite(values[name]) for name in checked):
        values["loss"] = math.nan
        return
    for optimizer, rate in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()


def _seed(seed: int, step: int) -> None:
    torch.manual_seed(seed * 1_000_003 + step)
    random.seed(seed * 1_000_003 + step)


def _to(batch: Batch, device: torch.device) -> Batch:
    if isinstance(batch, WaveBatch):
        return WaveBatch(batch.wave.to(device), batch.lengths.to(device))
    return batch.to(device)


def _after_step(run: TrainingRun, learner: Learner, step: int, losses: dict[str, float]) -> None:
    run.host.call_hook("segue_train_step", part=run.part, step=step, losses=losses)
    last = step == run.config.steps
    if run.valid_batches is not None and (last or step % run.config.validate_every == 0):
        losses |= validate(run)
    if last or step % LOG_EVERY == 0 or "valid_loss" in losses:
        _log(run, step, losses)
        if run.report is not None:
            run.report(run.part, step, run.config.steps, losses)
    if last or (step % run.config.save_every == 0 and math.isfinite(losses["loss"])):
        save_checkpoint(run, learner, step)


@torch.no_grad()
def validate(run: TrainingRun) -> dict[str, float]:
    """Mean losses over the same validation batches each time, in eval mode; then train again."""
    assert run.valid_batches is not None
    run.component.eval()
    sums: dict[str, float] = {}
    for index in range(run.config.validation_batches):
        batch = _to(run.valid_batches(index), run.component.device)
        for key, value in run.component.training_step(batch).items():
            sums[key] = sums.get(key, 0.0) + float(value)
    run.component.train()
    return {f"valid_{key}": value / run.config.validation_batches for key, value in sums.items()}


def _log(run: TrainingRun, step: int, losses: Mapping[str, float]) -> None:
    run.directory.mkdir(parents=True, exist_ok=True)
    with (run.directory / LOG).open("a", encoding="utf-8") as file:
        rounded = {key: float(f"{value:.6g}") for key, value in losses.items()}
        file.write(json.dumps({"step": step, **rounded}) + "\n")
