"""Checkpoints of a training run: all that a resumed run needs, written whole or not at all."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from segue.core.checkpoint import load_state, save_component, save_tensors
from segue.core.checkpoint_files import (
    FITTED,
    STATE_JSON,
    checkpoints,
    newest_checkpoint,
    read_manifest,
    step_of,
    trained_checkpoints,
)
from segue.core.errors import CheckpointError
from segue.core.files import atomic_directory, write_json
from segue.core.interfaces import Adversary, Component, StageLM
from segue.core.lora import ADAPTER, adapter_tensors, load_adapters
from segue.training.adaptation import check_same_adaptation
from segue.training.averaging import Average
from segue.training.ranks import on_each, on_first, ranks
from segue.training.sharding import as_sharded, local, whole, whole_state

if TYPE_CHECKING:
    from segue.training.loop import TrainingRun

STATE = "trainer.safetensors"
DROPPED = ".tmp-step-"  # begins the names of what is not whole, or no longer
OPPONENT, OPPONENT_OPTIMIZER = "adversary.weights.", "adversary.optimizer."
LAST, MEAN = "last.", "mean."  # the weights, and their running means


@dataclass
class Learner:
    """What changes with the steps.

    Attributes:
        component: that learns.
        optimizer: of the component.
        adversary: what the component is trained against, if there is one.
        adversary_optimizer: of the adversary.
        average: running means of the component's weights, if they are kept.
        scaler: of gradients in half precision, if there is one.
    """

    component: Component
    optimizer: torch.optim.Optimizer
    adversary: Adversary | None = None
    adversary_optimizer: torch.optim.Optimizer | None = None
    average: Average | None = None
    scaler: Any = None

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The component has the running means for the duration, if they are kept."""
        if self.average is None:
            yield
            return
        with self.average.applied():
            yield

    def tensors(self, keep: bool = True) -> dict[str, Tensor]:
        """All but the component's weights, each tensor whole and under a name of its own.

        Args:
            keep: False on ranks that only help to put tensors together.
        """
        found = _optimizer_tensors(self.optimizer, "", keep)
        if self.adversary is not None and self.adversary_optimizer is not None:
            weights = self.adversary.state_dict().items()
            found |= {f"{OPPONENT}{name}": whole(value, keep) for name, value in weights}
            found |= _optimizer_tensors(self.adversary_optimizer, OPPONENT_OPTIMIZER, keep)
        if self.average is not None:
            for name, value in self.average.named().items():
                found[f"{LAST}{name}"] = whole(value, keep)
                found[f"{MEAN}{name}"] = whole(self.average.means[name], keep)
        return found | adapter_tensors(self.component, self.component.state_dict())

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take up what ``tensors`` and ``state`` gave.

        Raises:
            ValueError, KeyError, RuntimeError: if it does not fit.
        """
        load_adapters(self.component, tensors)
        others = ("adversary.", ADAPTER, LAST, MEAN)
        own = {name: value for name, value in tensors.items() if not name.startswith(others)}
        _load_optimizer(self.optimizer, own)
        if self.adversary is not None and self.adversary_optimizer is not None:
            self.adversary.load_state_dict(_under(OPPONENT, tensors))
            _load_optimizer(self.adversary_optimizer, _under(OPPONENT_OPTIMIZER, tensors))
        self._load_average(tensors, state)
        if self.scaler is not None and "scaler" in state:
            self.scaler.load_state_dict(state["scaler"])

    @torch.no_grad()
    def _load_average(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Means go on where they were; a run that kept none before begins with the weights."""
        if self.average is None:
            return
        for name, value in self.average.named().items():
            last = tensors.get(f"{LAST}{name}")
            mean = tensors.get(f"{MEAN}{name}", last)
            if last is not None and mean is not None:
                local(value).copy_(local(as_sharded(last, value)))
                local(self.average.means[name]).copy_(local(as_sharded(mean, value)))
            else:
                local(self.average.means[name]).copy_(local(value))
        self.average.updates = int(state.get("updates", 0))

    def state(self) -> dict[str, Any]:
        """What of it is no tensor."""
        found: dict[str, Any] = {}
        if self.average is not None:
            found["updates"] = self.average.updates
        if self.scaler is not None:
            found["scaler"] = self.scaler.state_dict()
        return found


def save_checkpoint(
    run: TrainingRun, learner: Learner, step: int, valid_loss: float | None = None
) -> Path:
    """Write ``step-NNNNNNNN`` whole or not at all; drop old ones and what a killed run left.

    Every rank must call it; the first one writes.
    """
    tensors = learner.tensors(keep=ranks().first)
    with learner.averaged():
        weights = whole_state(run.component, keep=ranks().first)
        return on_first(lambda: _write(run, learner, step, valid_loss, weights, tensors))


def _write(
    run: TrainingRun,
    learner: Learner,
    step: int,
    valid_loss: float | None,
    weights: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
) -> Path:
    directory = run.directory / f"step-{step:08d}"
    with atomic_directory(directory) as temporary:
        trained = {"steps": step, "seed": run.config.seed, **run.notes}
        save_component(run.component, temporary, run.kind, run.use, trained, state=weights)
        save_tensors(tensors, temporary / STATE)
        state = {"step": step, "training": run.config.model_dump(mode="json"), **learner.state()}
        if valid_loss is not None:
            state["valid_loss"] = valid_loss
        write_json(temporary / STATE_JSON, state)
    _drop_old(run.directory, step, run.config.keep, run.config.best)
    sweep(run.directory)
    run.host.call_hook("segue_checkpoint_saved", part=run.part, directory=directory, step=step)
    return directory


def _drop_old(directory: Path, step: int, keep: int, best: int) -> None:
    """Keep the newest ones and those of the lowest validation loss."""
    found = trained_checkpoints(directory)
    kept = {*found[-keep:], *_by_loss(found)[:best]}
    for path in directory.glob("step-*"):
        stale = path.name.endswith(FITTED) and step_of(path) < step
        if stale or (path in found and path not in kept) or path.name < found[0].name:
            _drop(path)


def _by_loss(found: Sequence[Path]) -> list[Path]:
    """Those that were validated, the best first."""
    losses = {path: _valid_loss(path) for path in found}
    return sorted((p for p in found if math.isfinite(losses[p])), key=lambda path: losses[path])


def _valid_loss(checkpoint: Path) -> float:
    try:
        state = json.loads((checkpoint / STATE_JSON).read_text(encoding="utf-8"))
        return float(state.get("valid_loss", math.inf))
    except (OSError, ValueError, AttributeError):  # damaged: said by whoever needs it
        return math.inf


def lowest_loss(directory: Path) -> float:
    """The lowest validation loss of the checkpoints in a part's directory; infinite if none has."""
    return min(map(_valid_loss, trained_checkpoints(directory)), default=math.inf)


def best_checkpoint(directory: Path) -> Path | None:
    """The checkpoint of the lowest validation loss that is kept in a part's directory, if any."""
    return next(iter(_by_loss(trained_checkpoints(directory))), None)


def sweep(directory: Path) -> None:
    """Delete what a run that was killed left half written or half deleted."""
    for path in directory.glob(f"{DROPPED}*"):
        shutil.rmtree(path, ignore_errors=True)


def resume(run: TrainingRun, learner: Learner) -> int:
    """Load the newest checkpoint into the component and the learner; the step it is of.

    What a run that was killed while saving left over goes first.
    """
    newest = on_first(lambda: _tidied(run))
    return 0 if newest is None else on_each(partial(load_checkpoint, run, learner, newest))


def _tidied(run: TrainingRun) -> Path | None:
    newest = newest_checkpoint(run.directory, fitted=False)
    if newest is not None:
        _drop_old(run.directory, step_of(newest), run.config.keep, run.config.best)
    sweep(run.directory)
    return newest


def load_checkpoint(run: TrainingRun, learner: Learner, newest: Path) -> int:
    """Take a checkpoint up; the step it is of.

    Raises:
        CheckpointError: if it is of another component than the run's, or cannot be read.
    """
    _check_same(run, newest)
    load_state(run.component, newest, run.use)
    try:
        trainer = json.loads((newest / STATE_JSON).read_text(encoding="utf-8"))
        check_same_adaptation(run.config, newest, trainer.get("training"), run.part)
        learner.load(load_file(newest / STATE), trainer)
        return int(trainer["step"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            str(newest), f"cannot be resumed ({error})", "delete it to resume the one before"
        ) from error


def training_of(checkpoint: Path) -> dict[str, Any]:
    """The settings that a checkpoint was trained with, as JSON.

    Raises:
        CheckpointError: if they cannot be read.
    """
    try:
        return dict(json.loads((checkpoint / STATE_JSON).read_text(encoding="utf-8"))["training"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            str(checkpoint), f"cannot be resumed ({error})", "delete it to resume the one before"
        ) from error


def way_back(directory: Path) -> list[Path]:
    """Where to go back to: the older of the checkpoints that are kept, as the newest may be spoilt
    too; the newest itself if the older cannot be read."""
    return trained_checkpoints(directory)[-2:]


def step_back(run: TrainingRun, learner: Learner, candidates: Sequence[Path]) -> int:
    """Go back to the first of the candidates that can be read; what is newer is dropped.

    Returns:
        Its step.

    Raises:
        CheckpointError: if none can be read; then nothing is dropped.
    """
    for place, candidate in enumerate(candidates):
        try:
            step = load_checkpoint(run, learner, candidate)
        except CheckpointError:
            if place + 1 == len(candidates):
                raise
            continue
        on_first(partial(_drop_after, run.directory, step))
        return step
    return 0


def _drop_after(directory: Path, step: int) -> None:
    for path in checkpoints(directory):
        if step_of(path) > step:
            _drop(path)


def _drop(checkpoint: Path) -> None:
    """Delete a checkpoint; killed meanwhile, it leaves none that looks complete."""
    hidden = checkpoint.with_name(f"{DROPPED}{checkpoint.name.removeprefix('step-')}.dropped")
    shutil.rmtree(hidden, ignore_errors=True)
    checkpoint.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _check_same(run: TrainingRun, newest: Path) -> None:
    """Refuse a checkpoint of another component than the run's."""
    manifest = read_manifest(newest)
    options = run.component.config.model_dump(mode="json")
    if (manifest.use, manifest.options) != (run.use, options):
        raise CheckpointError(
            str(newest),
            f"was trained as {manifest.use} with other options than {run.part} has now",
            "choose another output directory, or restore the options",
        )
    if isinstance(run.component, StageLM) and manifest.stage_spec != run.component.stage:
        raise CheckpointError(
            str(newest),
            f"was trained on tokens or slices other than those that {run.part} has now",
            "choose another output directory, or restore the tokenizers and slices",
        )


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): value for k, value in tensors.items() if k.startswith(prefix)}


def _optimizer_tensors(
    optimizer: torch.optim.Optimizer, prefix: str, keep: bool
) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{prefix}{index}.{key}": whole(torch.as_tensor(value), keep)
        for index, entry in state.items()
        for key, value in entry.items()
    }


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        like = parameters[int(index)]
        fitting = as_sharded(tensor, like) if tensor.shape == like.shape else tensor
        state.setdefault(int(index), {})[key] = fitting
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
