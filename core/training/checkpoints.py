"""Checkpoints of a training run: all that a resumed run needs, written whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from segue.core.checkpoint import load_state, save_component, save_tensors
from segue.core.component_manifest import read_manifest
from segue.core.errors import CheckpointError
from segue.core.files import atomic_directory, write_json
from segue.core.interfaces import Adversary, StageLM

if TYPE_CHECKING:
    from segue.core.training.loop import TrainingRun

STATE, STATE_JSON = "trainer.safetensors", "trainer.json"
FITTED = "-fitted"  # ends the names of checkpoints that were fitted after training
KEEP_LAST = 2
DROPPED = ".tmp-step-"  # begins the names of what is not whole, or no longer
OPPONENT, OPPONENT_OPTIMIZER = "adversary.weights.", "adversary.optimizer."


@dataclass
class Learner:
    """What changes with the steps beside the component itself.

    Attributes:
        optimizer: of the component.
        adversary: what the component is trained against, if there is one.
        adversary_optimizer: of the adversary.
    """

    optimizer: torch.optim.Optimizer
    adversary: Adversary | None = None
    adversary_optimizer: torch.optim.Optimizer | None = None

    def tensors(self) -> dict[str, Tensor]:
        """All of it, each tensor under a name of its own."""
        found = _optimizer_tensors(self.optimizer, "")
        if self.adversary is not None and self.adversary_optimizer is not None:
            weights = self.adversary.state_dict().items()
            found |= {f"{OPPONENT}{name}": _copied(value) for name, value in weights}
            found |= _optimizer_tensors(self.adversary_optimizer, OPPONENT_OPTIMIZER)
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what ``tensors`` gave.

        Raises:
            ValueError, KeyError, RuntimeError: if it does not fit.
        """
        own = {name: value for name, value in tensors.items() if not name.startswith("adversary.")}
        _load_optimizer(self.optimizer, own)
        if self.adversary is not None and self.adversary_optimizer is not None:
            self.adversary.load_state_dict(_under(OPPONENT, tensors))
            _load_optimizer(self.adversary_optimizer, _under(OPPONENT_OPTIMIZER, tensors))


def save_checkpoint(run: TrainingRun, learner: Learner, step: int) -> Path:
    """Write ``step-NNNNNNNN`` whole or not at all; drop old ones and what a killed run left."""
    directory = run.directory / f"step-{step:08d}"
    with atomic_directory(directory) as temporary:
        trained = {"steps": step, "seed": run.config.seed, **run.notes}
        save_component(run.component, temporary, run.kind, run.use, trained)
        save_tensors(learner.tensors(), temporary / STATE)
        state = {"step": step, "training": run.config.model_dump(mode="json")}
        write_json(temporary / STATE_JSON, state)
    kept = trained_checkpoints(run.directory)[-KEEP_LAST:]
    for path in run.directory.glob("step-*"):
        stale = path.name.endswith(FITTED) and step_of(path) < step
        if stale or path.name < kept[0].name:
            _drop(path)
    sweep(run.directory)
    run.host.call_hook("segue_checkpoint_saved", part=run.part, directory=directory, step=step)
    return directory


def sweep(directory: Path) -> None:
    """Delete what a run that was killed left half written or half deleted."""
    for path in directory.glob(f"{DROPPED}*"):
        shutil.rmtree(path, ignore_errors=True)


def checkpoints(directory: Path) -> list[Path]:
    """The complete checkpoints in a part's directory, by step."""
    return sorted(path for path in directory.glob("step-*") if (path / STATE_JSON).is_file())


def newest_checkpoint(directory: Path, fitted: bool = True) -> Path | None:
    """The complete checkpoint of the highest step in a part's directory, if any.

    Args:
        fitted: also of those that were fitted after they had been trained.
    """
    found = checkpoints(directory) if fitted else trained_checkpoints(directory)
    return found[-1] if found else None


def trained_checkpoints(directory: Path) -> list[Path]:
    """The complete checkpoints that training can go on from, by step."""
    return [path for path in checkpoints(directory) if not path.name.endswith(FITTED)]


def resume(run: TrainingRun, learner: Learner) -> int:
    """Load the newest checkpoint into the component and the learner; the step it is of."""
    newest = newest_checkpoint(run.directory, fitted=False)
    return 0 if newest is None else load_checkpoint(run, learner, newest)


def load_checkpoint(run: TrainingRun, learner: Learner, newest: Path) -> int:
    """Take a checkpoint up; the step it is of.

    Raises:
        CheckpointError: if it is of another component than the run's, or cannot be read.
    """
    _check_same(run, newest)
    load_state(run.component, newest, run.use)
    try:
        learner.load(load_file(newest / STATE))
        return int(json.loads((newest / STATE_JSON).read_text(encoding="utf-8"))["step"])
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            str(newest), f"cannot be resumed ({error})", "delete it to resume the one before"
        ) from error


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint is of."""
    return int(checkpoint.name.removesuffix(FITTED).removeprefix("step-"))


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
        for path in checkpoints(run.directory):
            if step_of(path) > step:
                _drop(path)
        return step
    return 0


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


def _copied(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous().clone()


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): value for k, value in tensors.items() if k.startswith(prefix)}


def _optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{prefix}{index}.{key}": _copied(torch.as_tensor(value))
        for index, entry in state.items()
        for key, value in entry.items()
    }


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
