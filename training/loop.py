"""The training loop: codecs, tokenizers, stages and detectors all go through ``train``.

Read ``train`` from top to bottom. A step draws a batch, adds up the gradients of its pieces, clips
them and steps the optimizers; between steps the loop validates, logs, saves and guards.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from segue.core.collectives import everywhere
from segue.core.config import TrainingConfig
from segue.core.errors import DivergedError
from segue.core.interfaces import AcousticCodec, Component, StageLM
from segue.core.records import Kind
from segue.data.epochs import SEED_STRIDE, WHOLE, Share
from segue.inference.promises import calling, check_weight
from segue.training.adaptation import restore_frozen_buffers
from segue.training.counts import check_added_up
from segue.training.engine import Engine
from segue.training.guard import Guard, add_log_entry, note_rollback, rollbacks
from segue.training.learner import Learner, learning_rate, make_adversary, make_learner
from segue.training.prefetch import Batch, Batches, Prefetcher
from segue.training.ranks import on_each, on_first
from segue.training.saving import (
    claimed,
    go_back,
    lowest_loss,
    newest_trained,
    resume,
    save_checkpoint,
    step_of,
    trained_checkpoints,
)
from segue.training.stopping import Stopped, StopSignals
from segue.training.telemetry import Telemetry, peak_tflops
from segue.training.validation_audio import StageDecoder, validation_audio

if TYPE_CHECKING:
    from segue.core.plugins import PluginHost

Report = Callable[[str, int, int, Mapping[str, float]], None]

LOG_EVERY = 10
PIECE_STRIDE = 1 << 40  # between the seeds of pieces of a batch
LEAST_SCALE = 1e-4  # of losses in half precision: below it, gradients overflow for other reasons


@dataclass
class TrainingRun:
    """Everything that one training needs."""

    part: str  # path of the part in the pipeline, such as ``stages.coarse``
    kind: Kind
    use: str  # registered name
    component: Component  # to be trained, on its device
    config: TrainingConfig  # settings of the training
    directory: Path  # for checkpoints and the log; resumed if it holds any
    train_batches: Batches  # makes the batch of a number
    valid_batches: Batches | None  # does for validation
    host: PluginHost  # calls the plugins' hooks
    teacher: StageLM | None = None  # what a stage learns from with ``config.guided``
    notes: dict[str, Any] = field(default_factory=dict)  # written into each checkpoint's manifest
    # Takes part, step, number of steps and figures whenever a line is logged.
    report: Report | None = None
    decoder: StageDecoder | None = None  # makes a stage's validation tokens audible
    say: Callable[[str], None] | None = None  # takes sentences for the user
    # Called on the first rank once nothing refuses any more, before the first step.
    started: Callable[[], None] | None = None


def train(run: TrainingRun) -> Path:
    """Train until ``run.config.steps``, resuming if need be; return the last checkpoint.

    Under torchrun every rank calls this alike; the first one reports and writes. On Ctrl-C or
    SIGTERM the step is finished and a checkpoint saved.

    Raises:
        DivergedError: if the loss stays non-finite or the component reports trouble, after
            ``run.config.rollbacks`` returns to an earlier checkpoint.
        CheckpointError: if the newest checkpoint was written with other options.
        TrainingError: if another process trains in the directory.
        Stopped: after a signal.
    """
    config, component = run.config, run.component
    # The adversary comes first: its random weights must not depend on what the engine draws.
    adversary = make_adversary(component, config.seed)
    engine = Engine(component, config, f"{run.part}.training", adversary, run.teacher)
    learner = make_learner(component, adversary, config, engine)
    with claimed(run.directory):
        return _take_steps(run, engine, learner)


def _take_steps(run: TrainingRun, engine: Engine, learner: Learner) -> Path:
    config, component = run.config, run.component
    guard = Guard(component)
    peak = peak_tflops(component.device, config.precision)
    telemetry = Telemetry(component, component.device, engine.ranks.size, peak)
    step = resume(run, learner)
    if step:
        _say(run, f"{run.part}: resumed at step {step} of {config.steps}")
    component.train()
    check_added_up(engine, component, run.part, run.train_batches, config.batch_size)
    on_first(run.started or (lambda: None))
    batches = Prefetcher(run.train_batches, engine.shares, config.workers)
    with closing(batches), StopSignals() as signals:
        offset = _start_drawing(run, batches, step)
        while step < config.steps:
            started = time.perf_counter()
            pieces = on_each(batches.take)
            waited = time.perf_counter() - started

            figures, weight = optimization_step(
                engine, learner, config, step, offset + step, pieces
            )
            restore_frozen_buffers(component)  # training steps move codebooks and statistics
            finite = math.isfinite(figures["loss"])
            if learner.mean is not None and finite:
                learner.mean.update()
            figures["seconds"] = time.perf_counter() - started
            telemetry.note(figures["seconds"], waited, weight)
            step += 1

            last = step == config.steps
            trouble = guard.watch(step, figures, last)
            if trouble is not None:
                step = _roll_back(run, learner, step, trouble)
                guard.reset()
                offset = _start_drawing(run, batches, step)
                continue

            on_first(partial(_call_hook, run, "segue_train_step", step=step, losses=figures))
            best = False
            if run.valid_batches is not None and (last or step % config.validate_every == 0):
                figures |= validate(run, engine, learner, step)
                best = bool(config.best) and figures["valid_loss"] < on_first(
                    lambda: lowest_loss(run.directory)
                )
            if last or step % LOG_EVERY == 0 or "valid_loss" in figures:
                figures |= telemetry.figures()
                on_first(partial(_log, run, step, figures))
            # All ranks must agree: a signal may reach only some of them during this step.
            stopped = not everywhere(not signals.received, component.device)
            if last or (finite and (step % config.save_every == 0 or best or stopped)):
                save_checkpoint(run, learner, step, figures.get("valid_loss"))
            if stopped:
                raise Stopped(_where_stopped(run, step), signals.received)
    return on_first(lambda: newest_trained(run.directory) or run.directory)


def _start_drawing(run: TrainingRun, batches: Prefetcher, step: int) -> int:
    """Begin to prepare batches from ``step`` on; return what is added to a step to number them.

    Batches, dropout and noise of a step depend on the seed and this number alone, so that a
    resumed run repeats what it would have done. Each rollback adds to it, to draw other crops.
    """
    offset = run.config.steps * on_first(lambda: len(rollbacks(run.directory)))
    batches.start(range(offset + step, offset + run.config.steps))
    return offset


def optimization_step(
    engine: Engine,
    learner: Learner,
    config: TrainingConfig,
    step: int,
    number: int,
    pieces: Sequence[Batch],
) -> tuple[dict[str, float], float]:
    """Learn from one batch; a loss or gradient that is not finite changes no weight.

    Args:
        step: decides on the learning rate, and whether the adversary is at work.
        number: dropout and noise depend on it.
        pieces: this rank's rows of the batch, cut in ``config.accumulate`` pieces, on the CPU.

    Returns:
        Figures as if the whole batch had been learnt from at once, and its weight (frames or
        samples); a loss of NaN if nothing was learnt.
    """
    adversarial = learner.adversary is not None and step >= config.adversary_from
    optimizers = [learner.optimizer]
    if adversarial and learner.adversary_optimizer is not None:
        optimizers.append(learner.adversary_optimizer)
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)

    # Ragged pieces and ranks count by their valid frames. DDP averages the gradients of ranks, so
    # each loss is scaled to make that average the mean over all frames of all ranks.
    weights = _weights(learner.component, pieces)
    total = max(engine.total([sum(weights)])[0], 1e-9)
    sums: dict[str, Tensor] = {}
    shares = zip(engine.shares, pieces, weights, strict=True)
    for index, (share, piece, weight) in enumerate(shares):
        seed = config.seed * SEED_STRIDE + number + share.index * PIECE_STRIDE
        torch.manual_seed(seed)  # of dropout and noise
        random.seed(seed)
        # Ranks exchange gradients with the last piece only.
        with engine.gradients_kept_local(index + 1 < len(pieces), adversarial):
            losses = engine.losses(piece.to(learner.component.device), adversarial)
            if engine.has_gradients:
                _backward(engine, learner, losses, weight * engine.ranks.size / total, adversarial)
        _add(sums, losses, weight / total)
    values = engine.total(torch.stack(list(sums.values())).tolist())
    figures = dict(zip(sums, values, strict=True))
    if engine.has_gradients:
        _step_optimizers(engine, config, step, figures, optimizers)
    return figures, total


def _weights(component: Component, pieces: Sequence[Batch]) -> list[float]:
    with calling(component, "weight_of"):
        return [check_weight(component, component.weight_of(piece)) for piece in pieces]


def _backward(
    engine: Engine, learner: Learner, losses: dict[str, Tensor], factor: float, adversarial: bool
) -> None:
    """Compute gradients; with an adversary, each side gets those of its own loss only."""
    if not adversarial or learner.adversary is None:
        engine.fabric.backward(losses["loss"] * factor)
        return
    own = [p for p in learner.component.parameters() if p.requires_grad]
    theirs = [p for p in learner.adversary.parameters() if p.requires_grad]
    # Both losses come from one forward pass, so its graph is kept for the second backward pass.
    engine.fabric.backward(losses["adversary_loss"] * factor, retain_graph=True, inputs=theirs)
    engine.fabric.backward(losses["loss"] * factor, inputs=own)


def _step_optimizers(
    engine: Engine,
    config: TrainingConfig,
    step: int,
    figures: dict[str, float],
    optimizers: Sequence[torch.optim.Optimizer],
) -> None:
    """Clip gradients and step, if all is finite; set the loss to NaN if not."""
    for name, optimizer in zip(
        ("gradient_norm", "adversary_gradient_norm"), optimizers, strict=False
    ):
        figures[name] = engine.clip(optimizer, config.gradient_clip)
    checked = ("loss", "gradient_norm", "adversary_loss", "adversary_gradient_norm")
    finite = {name: math.isfinite(figures[name]) for name in checked if name in figures}
    scaler = engine.scaler
    if (
        finite["loss"]
        and not finite["gradient_norm"]
        and scaler
        and scaler.get_scale() > LEAST_SCALE
    ):
        # The scale is too large for half precision: the scaler skips this step and lowers it.
        figures |= {"gradient_norm": 0.0, "overflow": 1.0}
    elif not all(finite.values()):
        figures["loss"] = math.nan
        engine.skip_step()
        return
    rate = learning_rate(config, step)
    rates = (rate, rate * config.adversary_learning_rate / config.learning_rate)
    for optimizer, own_rate in zip(optimizers, rates, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = own_rate
        engine.step(optimizer)


def _add(sums: dict[str, Tensor], losses: Mapping[str, Tensor], factor: float) -> None:
    for key, value in losses.items():
        part = value.detach().double() * factor
        sums[key] = sums[key] + part if key in sums else part


def validate(run: TrainingRun, engine: Engine, learner: Learner, step: int) -> dict[str, float]:
    """Return mean losses over the validation batches, which are the same each time.

    They are those of the running means, if there are any. Hooks get samples to listen to.
    """
    batches, count = run.valid_batches, run.config.validation_batches
    assert batches is not None
    sums: dict[str, Tensor] = {}
    run.component.eval()
    with torch.no_grad(), learner.averaged():
        for index in range(count):
            pieces = on_each(partial(_draw, batches, index, engine.shares))
            weights = _weights(run.component, pieces)
            total = max(engine.total([sum(weights)])[0], 1e-9)
            for piece, weight in zip(pieces, weights, strict=True):
                _add(sums, engine.losses(piece.to(run.component.device)), weight / total)
        totals = engine.total(torch.stack(list(sums.values())).tolist())
        on_first(partial(_play, run, batches, step))
    run.component.train()
    return {f"valid_{key}": value / count for key, value in zip(sums, totals, strict=True)}


def _draw(batches: Batches, number: int, shares: Sequence[Share]) -> list[Batch]:
    return [batches(number, share) for share in shares]


def _play(run: TrainingRun, batches: Batches, step: int) -> None:
    """Let hooks hear a few validation crops, and what a codec or a stage makes of them."""
    if not (run.decoder or isinstance(run.component, AcousticCodec)):
        return
    found = validation_audio(run.component, batches(0, WHOLE), run.decoder)
    if found is not None:
        _call_hook(
            run,
            "segue_validation_audio",
            step=step,
            directory=run.directory,
            sample_rate=found[0],
            audio=found[1],
        )


def _roll_back(run: TrainingRun, learner: Learner, step: int, trouble: str) -> int:
    """Go back to an earlier checkpoint and return its step, or raise ``DivergedError``."""
    # The older of two checkpoints comes first: the newest may have the trouble in it already.
    candidates, tried = on_first(
        lambda: (trained_checkpoints(run.directory)[-2:], len(rollbacks(run.directory)))
    )
    if tried >= run.config.rollbacks or not candidates:
        again = f", after {tried} rollbacks" if tried else ""
        raise DivergedError(
            run.part,
            f"{trouble}{again}",
            f"lower training.learning_rate (now {run.config.learning_rate:g}), or allow more"
            f" training.rollbacks (now {run.config.rollbacks})",
        )
    # Noted first: if killed in between, the run resumes the newest checkpoint with other crops.
    on_first(lambda: note_rollback(run.directory, step, trouble, step_of(candidates[0])))
    back_to = go_back(run, learner, candidates)
    _say(run, f"{run.part}: went back from step {step} to step {back_to}: {trouble}")
    return back_to


def _where_stopped(run: TrainingRun, step: int) -> str:
    newest = on_first(lambda: newest_trained(run.directory))
    saved = "nothing is saved" if newest is None else f"{newest} is saved"
    return f"{run.part}: stopped after step {step}; {saved}; the same command goes on"


def _log(run: TrainingRun, step: int, figures: Mapping[str, float]) -> None:
    """Pass figures to the log, to hooks and to the caller."""
    add_log_entry(run.directory, step, figures)
    _call_hook(run, "segue_train_logged", step=step, directory=run.directory, figures=figures)
    if run.report is not None:
        run.report(run.part, step, run.config.steps, figures)


def _call_hook(run: TrainingRun, name: str, **arguments: Any) -> None:
    run.host.call_hook(name, part=run.part, **arguments)


def _say(run: TrainingRun, sentence: str) -> None:
    if run.say is not None:
        run.say(sentence)
