"""The training loop of a pipeline: every part of one that learns by gradient goes through it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from segue.core.checkpoint_files import newest_checkpoint, step_of
from segue.core.config import TrainingConfig
from segue.core.errors import DivergedError
from segue.core.files import add_line
from segue.core.interfaces import AcousticCodec, Adversary, Component
from segue.core.records import Kind
from segue.data.share import WHOLE
from segue.training.adaptation import keep_frozen
from segue.training.averaging import Average
from segue.training.checkpoints import (
    Learner,
    lowest_loss,
    resume,
    save_checkpoint,
    step_back,
    way_back,
)
from segue.training.engine import Engine
from segue.training.guard import LOG, Guard, note_rollback, rollbacks
from segue.training.listening import Voice, heard
from segue.training.prefetch import Batch, Batches, Feed
from segue.training.ranks import on_each, on_first
from segue.training.steps import learn, shares
from segue.training.telemetry import Telemetry, peak_tflops

if TYPE_CHECKING:
    from segue.core.manager import PluginHost

Report = Callable[[str, int, int, Mapping[str, float]], None]

LOG_EVERY = 10


@dataclass
class TrainingRun:
    """All that one run needs; ``directory`` is where it saves and what it resumes from, ``voice``
    what a stage is heard by."""

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
    voice: Voice | None = None


def train(run: TrainingRun) -> Path:
    """Train until ``run.config.steps``, resuming from the newest checkpoint if there is one.

    Under torchrun every rank calls this alike; the first one reports and writes. Batches, dropout
    and codebook noise of a step depend on the seed, the step and the number of rollbacks alone, so
    a run that was killed and resumed repeats what it would have done.

    Returns:
        The directory of the last checkpoint.

    Raises:
        TrainingError: if the loss stays non-finite, or the component reports trouble, in spite of
            ``run.config.rollbacks``.
        CheckpointError: if the newest checkpoint was written with other options.
    """
    adversary = make_adversary(run)
    engine = Engine(run.component, run.config, f"{run.part}.training", adversary)
    learner = make_learner(run, engine, adversary)
    step = resume(run, learner)
    run.component.train()
    with closing(Feed(run.train_batches, shares(engine, run.config), run.config.workers)) as feed:
        _Loop(run, engine, learner, feed).go_on_from(step)
    return on_first(lambda: newest_checkpoint(run.directory, fitted=False) or run.directory)


def make_adversary(run: TrainingRun) -> Adversary | None:
    """The component's adversary, which depends on the seed alone."""
    torch.manual_seed(run.config.seed)
    adversary = run.component.adversary()
    return None if adversary is None else adversary.to(run.component.device).train()


def make_learner(run: TrainingRun, engine: Engine, adversary: Adversary | None) -> Learner:
    """Fresh optimizers of both sides, and running means if the config wants them."""
    learner = Learner(
        run.component,
        make_optimizer(run.component, run.config),
        adversary,
        None if adversary is None else make_optimizer(adversary, run.config),
        Average(run.component, run.config.ema) if run.config.ema else None,
        engine.scaler,
    )
    engine.take(learner.optimizer)
    if learner.adversary_optimizer is not None:
        engine.take(learner.adversary_optimizer)
    return learner


def make_optimizer(module: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW; vectors (biases, norms) are not decayed."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)


class _Loop:
    """Steps, and what is done between them."""

    def __init__(self, run: TrainingRun, engine: Engine, learner: Learner, feed: Feed) -> None:
        self.run, self.engine, self.learner, self.feed = run, engine, learner, feed
        self.guard = Guard(run.component)
        device = run.component.device
        peak = peak_tflops(device, run.config.precision)
        self.telemetry = Telemetry(run.component, device, engine.ranks.size, peak)

    def go_on_from(self, step: int) -> None:
        self._feed_from(step)
        while step < self.run.config.steps:
            figures = self._step(step)
            step += 1
            trouble = self.guard.watch(step, figures)
            if trouble is None:
                self._after(step, figures)
                continue
            step = _roll_back(self.run, self.learner, step, trouble)
            self.guard.reset()
            self._feed_from(step)

    def _feed_from(self, step: int) -> None:
        """Each rollback draws other crops and noise."""
        attempt = on_first(lambda: len(rollbacks(self.run.directory)))
        steps = self.run.config.steps
        self._first = attempt * steps
        self.feed.start(range(self._first + step, self._first + steps))

    def _step(self, step: int) -> dict[str, float]:
        started = time.perf_counter()
        pieces = on_each(self.feed.take)
        waited = time.perf_counter() - started
        config = self.run.config
        figures, weight = learn(self.engine, self.learner, config, step, self._first + step, pieces)
        keep_frozen(self.run.component)
        if self.learner.average is not None and math.isfinite(figures["loss"]):
            self.learner.average.update()
        figures["seconds"] = time.perf_counter() - started
        self.telemetry.note(figures["seconds"], waited, weight)
        return figures

    def _after(self, step: int, figures: dict[str, float]) -> None:
        run, config = self.run, self.run.config
        on_first(
            lambda: run.host.call_hook("segue_train_step", part=run.part, step=step, losses=figures)
        )
        last = step == config.steps
        if run.valid_batches is not None and (last or step % config.validate_every == 0):
            figures |= self._validate(step)
        if last or step % LOG_EVERY == 0 or "valid_loss" in figures:
            figures |= self.telemetry.figures()
            on_first(lambda: _log(run, step, figures))
        finite = math.isfinite(figures["loss"])
        if last or (finite and (step % config.save_every == 0 or self._is_best(figures))):
            save_checkpoint(run, self.learner, step, figures.get("valid_loss"))

    def _is_best(self, figures: Mapping[str, float]) -> bool:
        if not self.run.config.best or "valid_loss" not in figures:
            return False
        return figures["valid_loss"] < on_first(lambda: lowest_loss(self.run.directory))

    def _validate(self, step: int) -> dict[str, float]:
        """Mean losses over the same batches each time, of the running means if there are any."""
        self.run.component.eval()
        with torch.no_grad(), self.learner.averaged():
            found = validate(self.run, self.engine)
            on_first(lambda: _play(self.run, step))
        self.run.component.train()
        return found


def validate(run: TrainingRun, engine: Engine) -> dict[str, float]:
    """Mean losses over the validation batches, each as if it were learnt from at once."""
    sums: dict[str, Tensor] = {}
    for index in range(run.config.validation_batches):
        pieces = on_each(partial(_valid_pieces, run, engine, index))
        weights = [run.component.weight_of(piece) for piece in pieces]
        total = max(engine.total([sum(weights)])[0], 1e-9)
        for piece, weight in zip(pieces, weights, strict=True):
            losses = engine.losses(piece.to(run.component.device))
            for key, value in losses.items():
                part = value.double() * (weight / total)
                sums[key] = sums[key] + part if key in sums else part
    totals = engine.total(torch.stack(list(sums.values())).tolist())
    count = run.config.validation_batches
    return {f"valid_{key}": value / count for key, value in zip(sums, totals, strict=True)}


def _valid_pieces(run: TrainingRun, engine: Engine, index: int) -> list[Batch]:
    assert run.valid_batches is not None
    return [run.valid_batches(index, share) for share in shares(engine, run.config)]


def _play(run: TrainingRun, step: int) -> None:
    """Let hooks hear a few validation crops, and what a codec or a stage makes of them."""
    if run.valid_batches is None or not (run.voice or isinstance(run.component, AcousticCodec)):
        return
    found = heard(run.component, run.valid_batches(0, WHOLE), run.voice)
    if found is None:
        return
    rate, audio = found
    run.host.call_hook(
        "segue_validation_audio",
        part=run.part,
        step=step,
        directory=run.directory,
        sample_rate=rate,
        audio=audio,
    )


def _roll_back(run: TrainingRun, learner: Learner, step: int, trouble: str) -> int:
    """Go back to an earlier checkpoint, if there is one and it was not tried too often.

    Returns:
        The step to go on from.
    """
    candidates, tried = on_first(lambda: (way_back(run.directory), len(rollbacks(run.directory))))
    if tried >= run.config.rollbacks or not candidates:
        again = f", after {tried} rollbacks" if tried else ""
        raise DivergedError(
            run.part,
            f"{trouble}{again}",
            f"lower training.learning_rate (now {run.config.learning_rate:g}), or allow more"
            f" training.rollbacks (now {run.config.rollbacks})",
        )
    back_to = step_of(candidates[0])
    # Noted first: killed in between, the run goes on from the newest checkpoint with other crops.
    on_first(lambda: note_rollback(run.directory, step, trouble, back_to))
    back_to = step_back(run, learner, candidates)
    if run.report is not None:
        run.report(run.part, back_to, run.config.steps, {"rolled_back_from": float(step)})
    return back_to


def _log(run: TrainingRun, step: int, figures: Mapping[str, float]) -> None:
    """To the log, to hooks and to whoever waits."""
    rounded = {key: float(f"{value:.6g}") for key, value in figures.items()}
    add_line(run.directory / LOG, json.dumps({"step": step, **rounded}))
    run.host.call_hook(
        "segue_train_logged", part=run.part, step=step, directory=run.directory, figures=figures
    )
    if run.report is not None:
        run.report(run.part, step, run.config.steps, figures)
