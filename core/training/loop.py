"""The one training loop: every part that is trained by gradient goes through ``train``."""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from segue.core.checkpoint import load_state, save_component, save_tensors
from segue.core.component_manifest import read_manifest
from segue.core.config.schema import TrainingConfig
from segue.core.errors import CheckpointError, TrainingError
from segue.core.files import atomic_directory, write_json
from segue.core.interfaces import Component, StageBatch, StageLM, WaveBatch
from segue.core.records import Kind

if TYPE_CHECKING:
    from segue.core.manager import PluginHost

Batch = WaveBatch | StageBatch
Batches = Callable[[int], Batch]
Report = Callable[[str, int, int, Mapping[str, float]], None]

STATE, STATE_JSON, LOG = "trainer.safetensors", "trainer.json", "log.jsonl"
KEEP_LAST = 2
LOG_EVERY = 10
MAX_SKIPPED_STEPS = 10


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

    Batches, dropout and codebook noise of a step depend on the seed and the step alone, so a run
    that was killed and resumed repeats what it would have done.

    Returns:
        The directory of the last checkpoint.

    Raises:
        TrainingError: if the loss stays non-finite.
        CheckpointError: if the newest checkpoint was written with other options.
    """
    optimizer = make_optimizer(run.component, run.config)
    step = _resume(run, optimizer)
    run.component.train()
    skipped = 0
    while step < run.config.steps:
        started = time.perf_counter()
        losses = _step(run, optimizer, step)
        skipped = 0 if math.isfinite(losses["loss"]) else skipped + 1
        if skipped > MAX_SKIPPED_STEPS:
            raise TrainingError(
                run.part,
                f"the loss was not finite in {skipped} steps up to step {step}",
                f"lower training.learning_rate (now {run.config.learning_rate:g})",
            )
        step += 1
        losses["seconds"] = time.perf_counter() - started
        _after_step(run, optimizer, step, losses)
    return newest_checkpoint(run.directory) or run.directory


def make_optimizer(component: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW; vectors (biases, norms) are not decayed."""
    trainable = [p for p in component.parameters() if p.requires_grad]
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


def _step(run: TrainingRun, optimizer: torch.optim.Optimizer, step: int) -> dict[str, float]:
    """One optimisation step; a non-finite loss or gradient changes nothing but is reported."""
    _seed(run.config.seed, step)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(run.config, step)
    losses = run.component.training_step(_to(run.train_batches(step), run.component.device))
    optimizer.zero_grad(set_to_none=True)
    losses["loss"].backward()
    norm = nn.utils.clip_grad_norm_(run.component.parameters(), run.config.gradient_clip)
    values = {key: float(value.detach()) for key, value in losses.items()}
    values["gradient_norm"] = float(norm)
    if math.isfinite(values["loss"]) and math.isfinite(values["gradient_norm"]):
        optimizer.step()
    else:
        values["loss"] = math.nan
    return values


def _seed(seed: int, step: int) -> None:
    torch.manual_seed(seed * 1_000_003 + step)
    random.seed(seed * 1_000_003 + step)


def _to(batch: Batch, device: torch.device) -> Batch:
    if isinstance(batch, WaveBatch):
        return WaveBatch(batch.wave.to(device), batch.lengths.to(device))
    return batch.to(device)


def _after_step(
    run: TrainingRun, optimizer: torch.optim.Optimizer, step: int, losses: dict[str, float]
) -> None:
    run.host.call_hook("segue_train_step", part=run.part, step=step, losses=losses)
    last = step == run.config.steps
    if run.valid_batches is not None and (last or step % run.config.validate_every == 0):
        losses |= validate(run)
    if last or step % LOG_EVERY == 0 or "valid_loss" in losses:
        _log(run, step, losses)
        if run.report is not None:
            run.report(run.part, step, run.config.steps, losses)
    if last or (step % run.config.save_every == 0 and math.isfinite(losses["loss"])):
        save_checkpoint(run, optimizer, step)


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


def save_checkpoint(run: TrainingRun, optimizer: torch.optim.Optimizer, step: int) -> Path:
    """Write ``step-NNNNNNNN`` whole or not at all; drop old ones and what a killed run left."""
    directory = run.directory / f"step-{step:08d}"
    with atomic_directory(directory) as temporary:
        trained = {"steps": step, "seed": run.config.seed, **run.notes}
        save_component(run.component, temporary, run.kind, run.use, trained)
        save_tensors(_optimizer_tensors(optimizer), temporary / STATE)
        state = {"step": step, "training": run.config.model_dump(mode="json")}
        write_json(temporary / STATE_JSON, state)
    kept = _checkpoints(run.directory)[-KEEP_LAST:]
    old = [path for path in run.directory.glob("step-*") if path.name < kept[0].name]
    for path in (*old, *run.directory.glob(".tmp-step-*")):
        shutil.rmtree(path, ignore_errors=True)
    run.host.call_hook("segue_checkpoint_saved", part=run.part, directory=directory, step=step)
    return directory


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{key}": torch.as_tensor(value).detach().cpu().contiguous().clone()
        for index, entry in state.items()
        for key, value in entry.items()
    }


def _checkpoints(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("step-*") if (path / STATE_JSON).is_file())


def newest_checkpoint(directory: Path) -> Path | None:
    """The complete checkpoint of the highest step in a part's directory, if any."""
    found = _checkpoints(directory)
    return found[-1] if found else None


def _resume(run: TrainingRun, optimizer: torch.optim.Optimizer) -> int:
    """Load the newest checkpoint into the component and the optimizer; the step it is of."""
    newest = newest_checkpoint(run.directory)
    if newest is None:
        return 0
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
    load_state(run.component, newest, run.use)
    try:
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in load_file(newest / STATE).items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        return int(json.loads((newest / STATE_JSON).read_text(encoding="utf-8"))["step"])
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            str(newest), f"cannot be resumed ({error})", "delete it to resume the one before"
        ) from error
