"""Save a training run and resume it exactly: checkpoints are written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from segue.core.assembly import Part
from segue.core.checkpoint import load_state, save_component, save_tensors
from segue.core.checkpoint_files import (
    FITTED,
    STATE_JSON,
    checkpoints,
    read_manifest,
)
from segue.core.config import TrainingConfig
from segue.core.errors import CheckpointError, TrainingError
from segue.core.files import atomic_directory, read_text, write_json
from segue.core.interfaces import StageLM
from segue.core.options import Options
from segue.core.spec import StageSpec
from segue.training.adaptation import load_plain, plain_state
from segue.training.counts import check_equal
from segue.training.guard import cut_log
from segue.training.learner import Learner
from segue.training.ranks import on_each, on_first, ranks, whole

if TYPE_CHECKING:
    from segue.training.loop import TrainingRun

STATE = "trainer.safetensors"
CLAIM = ".claim"
HIDDEN = ".tmp-step-"  # begins the names of checkpoints that are half written or half deleted


@contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Keep other processes from training in a part's directory until this one leaves or ends.

    Raises:
        TrainingError: if one trains there already.
    """
    path = directory / CLAIM
    claim = on_first(lambda: _claim(path))
    try:
        yield
    finally:
        if ranks().first and claim is not None:
            with suppress(OSError):  # the directory may be gone
                path.unlink()
            os.close(claim)


def _claim(path: Path) -> int | None:
    """Return an open file that this process has locked; None where there are no such locks."""
    try:
        import fcntl  # not on Windows

        path.parent.mkdir(parents=True, exist_ok=True)
        claim = os.open(path, os.O_RDWR | os.O_CREAT)
    except (ImportError, OSError):  # who writes there next says what is wrong
        return None
    try:
        fcntl.lockf(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not passed on to forked workers
    except (BlockingIOError, PermissionError) as error:
        os.close(claim)
        fix = "wait for it, or stop it first"
        raise TrainingError(str(path.parent), "another process trains here", fix) from error
    except OSError:  # nor on some network file systems
        pass
    return claim


def save_checkpoint(
    run: TrainingRun, learner: Learner, step: int, valid_loss: float | None = None
) -> Path:
    """Write ``step-NNNNNNNN``, then drop old checkpoints and what a killed run left.

    Every rank must call this; the first one writes.
    """
    check_equal(run.component, run.part)
    # Gathering sharded tensors needs every rank; only the first one keeps and writes them.
    first = ranks().first
    tensors = learner.tensors(keep=first)
    with learner.averaged():  # component files hold the running means, if there are any
        state = run.component.state_dict()
        weights = {name: whole(value, keep=first) for name, value in state.items()}
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
        plain = plain_state(run.component, weights)
        save_component(run.component, temporary, run.kind, run.use, trained, state=plain)
        save_tensors(tensors, temporary / STATE)
        # From weights, moments, means and the step, a resumed run repeats the one that was killed:
        # batches and noise follow from the step.
        state = {"step": step, "training": run.config.model_dump(mode="json"), **learner.state()}
        if valid_loss is not None:
            state["valid_loss"] = valid_loss
        write_json(temporary / STATE_JSON, state)
    # Only now is the new checkpoint on disk under its name: old ones may go.
    _drop_old(run.directory, step, run.config.keep, run.config.best)
    sweep(run.directory)
    run.host.call_hook("segue_checkpoint_saved", part=run.part, directory=directory, step=step)
    return directory


def sweep(directory: Path) -> None:
    """Delete what a killed run left half written or half deleted."""
    for path in directory.glob(f"{HIDDEN}*"):
        shutil.rmtree(path, ignore_errors=True)


def lowest_loss(directory: Path) -> float:
    """Return the lowest validation loss of a part's checkpoints; infinity if none has one."""
    return min(map(_valid_loss, trained_checkpoints(directory)), default=math.inf)


def resume(run: TrainingRun, learner: Learner) -> int:
    """Load the newest checkpoint, or raise ``CheckpointError``; return its step, 0 without one.

    Log entries after that step are removed: the run writes them again.
    """
    newest = on_first(lambda: _tidied(run))
    # Every rank loads, and all fail together: one that stopped alone would leave the others
    # waiting.
    step = 0 if newest is None else on_each(partial(_load, run, learner, newest))
    on_first(lambda: cut_log(run.directory, step))
    return step


def _tidied(run: TrainingRun) -> Path | None:
    newest = newest_trained(run.directory)
    if newest is not None:
        _drop_old(run.directory, step_of(newest), run.config.keep, run.config.best)
    sweep(run.directory)
    return newest


def go_back(run: TrainingRun, learner: Learner, candidates: Sequence[Path]) -> int:
    """Load the first candidate that can be read, drop what is newer, and return its step.

    Raises:
        CheckpointError: if none can be read; then nothing is dropped.
    """
    for candidate in candidates[:-1]:  # a damaged one is passed over if another is left
        try:
            step = _load(run, learner, candidate)
            break
        except CheckpointError:
            continue
    else:
        step = _load(run, learner, candidates[-1])
    on_first(partial(_drop_after, run.directory, step))
    return step


def _load(run: TrainingRun, learner: Learner, checkpoint: Path) -> int:
    stage = run.component.stage if isinstance(run.component, StageLM) else None
    _check_same(checkpoint, run.part, run.use, run.component.config, stage)
    _check_same_adaptation(checkpoint, run.part, run.config)
    load_state(run.component, checkpoint, run.use, load_plain)
    state = read_state(checkpoint)
    with _readable(checkpoint):
        learner.load(load_file(checkpoint / STATE), state)
        return int(state["step"])


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return ``trainer.json``, a checkpoint's step and settings, or raise ``CheckpointError``."""
    with _readable(checkpoint):
        return dict(json.loads(read_text(checkpoint / STATE_JSON)))


@contextmanager
def _readable(checkpoint: Path) -> Iterator[None]:
    """Name the checkpoint in errors that a damaged file causes within the block."""
    try:
        yield
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        problem = f"cannot be resumed ({error})"
        raise CheckpointError(
            str(checkpoint), problem, "delete it to resume the one before"
        ) from error


def check_resumable(
    newest: Path, part: Part, training: TrainingConfig, stage: StageSpec | None
) -> None:
    """Raise ``CheckpointError`` if training cannot go on from a part's newest checkpoint.

    Args:
        part, training: as they are now.
        stage: given, it must be the one that was trained.
    """
    _check_same(newest, part.name, part.use, part.options, stage)
    trained = newest_trained(newest.parent)
    if trained is not None:
        _check_same_adaptation(trained, part.name, training)


def _check_same(
    checkpoint: Path, part: str, use: str, options: Options, stage: StageSpec | None
) -> None:
    """Refuse a checkpoint of another plugin, of other options or, if given, of another stage."""
    manifest = read_manifest(checkpoint)
    if (manifest.use, manifest.options) != (use, options.model_dump(mode="json")):
        raise CheckpointError(
            str(checkpoint),
            f"was trained as {manifest.use} with other options than {part} has now",
            "choose another output directory, or restore the options",
        )
    if stage is not None and manifest.stage_spec != stage:
        raise CheckpointError(
            str(checkpoint),
            f"was trained on other tokens or slices than {part} has now",
            "choose another output directory, restore the tokenizers and slices, or delete "
            f"{checkpoint.parent} to train it anew",
        )


def _check_same_adaptation(checkpoint: Path, part: str, training: TrainingConfig) -> None:
    """Refuse to resume with other ``freeze`` or ``lora`` than the run began with."""
    before, now = read_state(checkpoint).get("training"), training.model_dump(mode="json")
    if before is None:  # it was only fitted
        return
    for key, nothing in (("freeze", []), ("lora", None)):  # old checkpoints may lack them
        was, is_now = (json.dumps(one.get(key, nothing)) for one in (before, now))
        if was != is_now:
            raise CheckpointError(
                str(checkpoint),
                f"was trained with {key} {was}, {part} now has {is_now}",
                "restore it, or start another output directory from this checkpoint",
            )


def _drop_old(directory: Path, step: int, keep: int, best: int) -> None:
    """Keep the newest checkpoints and those of the lowest validation loss."""
    found = trained_checkpoints(directory)
    losses = {path: _valid_loss(path) for path in found}
    by_loss = sorted((p for p in found if math.isfinite(losses[p])), key=lambda path: losses[path])
    kept = {*found[-keep:], *by_loss[:best]}
    for path in directory.glob("step-*"):
        # A fit to earlier weights is stale; older leftovers without a state go, too.
        stale = path.name.endswith(FITTED) and step_of(path) < step
        if stale or (path in found and path not in kept) or path.name < found[0].name:
            _drop(path)


def _valid_loss(checkpoint: Path) -> float:
    try:
        return float(read_state(checkpoint).get("valid_loss", math.inf))
    except (CheckpointError, ValueError, TypeError):  # damaged: reported where it is loaded
        return math.inf


def _drop_after(directory: Path, step: int) -> None:
    for path in checkpoints(directory):
        if step_of(path) > step:
            _drop(path)
    cut_log(directory, step)


def _drop(checkpoint: Path) -> None:
    """Delete a checkpoint; renamed first, so that a kill leaves none that only looks complete."""
    hidden = checkpoint.with_name(f"{HIDDEN}{checkpoint.name.removeprefix('step-')}.dropped")
    shutil.rmtree(hidden, ignore_errors=True)
    checkpoint.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def trained_checkpoints(directory: Path) -> list[Path]:
    """Return the complete checkpoints that training can go on from, by step."""
    return [path for path in checkpoints(directory) if not path.name.endswith(FITTED)]


def newest_trained(directory: Path) -> Path | None:
    """Return the last of ``trained_checkpoints``, if there is one."""
    return next(reversed(trained_checkpoints(directory)), None)


def step_of(checkpoint: Path) -> int:
    """Return the step of a checkpoint."""
    return int(checkpoint.name.removesuffix(FITTED).removeprefix("step-"))
