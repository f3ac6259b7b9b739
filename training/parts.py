"""Train any part of a pipeline by the path that names it: ``codec``, ``stages.coarse``, ``all``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from segue.core.assembly import Assembly, assemble
from segue.core.checkpoint import build_part, load_state, save_component
from segue.core.checkpoint_files import (
    FITTED,
    STATE_JSON,
    newest_checkpoint,
    read_manifest,
    step_of,
)
from segue.core.config import ComponentConfig, PipelineConfig, replace_parts
from segue.core.config_files import write_pipeline_file
from segue.core.domain import PIPELINE_FILE
from segue.core.errors import DataError, GenerationError, TrainingError
from segue.core.files import atomic_directory, write_json
from segue.core.interfaces import AcousticCodec, Component, StageLM, Tokenizer
from segue.core.manager import PluginHost
from segue.core.pipeline import Pipeline
from segue.core.progress import Progress
from segue.data.audio_crops import AudioCrops, whole_recordings
from segue.data.places import is_url
from segue.data.recordings import Recordings, Split
from segue.data.sources import of_split, read_recordings
from segue.data.store_plan import has_split
from segue.data.store_writer import write_store
from segue.data.token_crops import TokenCrops
from segue.data.token_store import TokenStore
from segue.training.adaptation import adapt, start_from
from segue.training.checkpoints import sweep
from segue.training.listening import Voice
from segue.training.loop import Report, TrainingRun, train
from segue.training.prefetch import Batches
from segue.training.ranks import connect, on_each, on_first, wait_for_all

TOKENS = "tokens"  # of a training directory: its token store
FIT_PIECE_SECONDS = 30.0
MAX_FIT_SECONDS = 7200.0
VALIDATION_SEED = 7_777_777


@dataclass
class Workspace:
    """A training directory: ``config.yaml``, one folder per part, ``tokens/`` and ``pipeline/``.

    Attributes:
        config: resolved config, as given; checkpoints made here are added by ``current``.
        directory: where everything goes.
        data: recordings, as ``read_recordings`` takes them; None where only tokens are needed.
    """

    config: PipelineConfig
    directory: Path
    data: Path | str | None
    host: PluginHost
    device: torch.device | str = "cpu"
    report: Report | None = None
    progress: Progress | None = None

    def part_directory(self, part: str) -> Path:
        return self.directory / self.config.slots[part].folder

    def current(self, stages: bool = True) -> PipelineConfig:
        """The config with the newest checkpoint of every part that was trained here.

        Args:
            stages: False leaves the stages' own checkpoints out: one that was trained on older
                tokens is in nobody's way while a part is trained.
        """
        found = {}
        for part, ref in self.config.parts.items():
            if part.startswith("stages.") and not stages:
                found[part] = _without_checkpoint(ref)
                continue
            checkpoint = newest_checkpoint(self.part_directory(part))
            if checkpoint is not None:
                found[part] = ref.model_copy(update={"checkpoint": str(checkpoint.resolve())})
        return replace_parts(self.config, found)

    @property
    def data_name(self) -> str:
        """What checkpoints call the data: folder and file name, not where they lie here."""
        if self.data is None:
            return "tokens"
        here = self.data if is_url(str(self.data)) else Path(self.data).resolve()
        return "/".join(PurePosixPath(here).parts[-2:])

    @cached_property
    def _every_recording(self) -> Recordings:
        """Read once: a folder's files are all opened for it."""
        if self.data is None:
            raise DataError("--data", "is missing", "name a folder of audio or a CSV manifest")
        return read_recordings(self.data)

    def recordings(self, split: Split) -> Recordings:
        every = self._every_recording
        assert self.data is not None
        return of_split(every, split, self.data)

    def has_valid(self) -> bool:
        return len(self._every_recording.of_split("valid")) > 0


def train_part(workspace: Workspace, part: str) -> Path:
    """Train one part (or go on training it) and return its newest checkpoint.

    Args:
        part: ``semantic_tokenizer``, ``codec`` or ``stages.<name>``.

    Raises:
        TrainingError: if there is no such part or it learns nothing.
        SegueError: if data, checkpoints or options cannot be used.
    """
    parts = workspace.config.parts
    if part not in parts:
        raise TrainingError(
            part, "is no part of this pipeline", f"choose one of {', '.join(parts)}"
        )
    connect(torch.device(workspace.device))
    wait_for_all()  # what others trained before is complete
    assembly = assemble(workspace.current(stages=False), workspace.host)
    component = on_each(lambda: _fresh(workspace, assembly, part))
    if not component.learns:
        raise TrainingError(part, f"{parts[part].use} learns nothing", "use it as it is")
    if _is_only_fitted(parts[part], component, part):
        on_each(lambda: workspace.recordings("train"))
        on_first(lambda: _keep_config(workspace))
        step = min(1, parts[part].training.steps)
        return on_first(lambda: _fit(workspace, part, component.eval(), step))
    run = on_each(lambda: _training_run(workspace, assembly, part, component))
    on_first(lambda: _keep_config(workspace))
    newest = train(run)
    if component.needs_fitting:
        return on_first(lambda: _fit_trained(workspace, part, component))
    return newest


def _is_only_fitted(ref: ComponentConfig, component: Component, part: str) -> bool:
    """Whether there is no training before fitting."""
    if not component.needs_training:
        return True
    if ref.training.steps == 0 and (not component.needs_fitting or ref.checkpoint is None):
        raise TrainingError(
            f"{part}.training.steps", "is 0", "give some, or name a trained tokenizer's checkpoint"
        )
    return ref.training.steps == 0


def _fit_trained(workspace: Workspace, part: str, component: Component) -> Path:
    """Fit what has just been trained, or was before; its checkpoint comes after the trained one,
    which stays for the training to go on from."""
    trained = newest_checkpoint(workspace.part_directory(part), fitted=False)
    assert trained is not None
    return _fit(workspace, part, component.eval(), step_of(trained), FITTED)


def _keep_config(workspace: Workspace) -> None:
    """Write the resolved config, once it is known that training can start with it."""
    workspace.directory.mkdir(parents=True, exist_ok=True)
    write_pipeline_file(workspace.config, workspace.directory / "config.yaml")


def _fresh(workspace: Workspace, assembly: Assembly, part: str) -> Component:
    """The component as it is before training.

    Its weights are those of the checkpoint that the config names, if it names one (fine-tuning);
    else they depend on the seed alone, and on what ``start_from`` names. What the config says is
    frozen or adapted is.
    """
    ref = workspace.config.parts[part]
    torch.manual_seed(ref.training.seed)
    plain = assembly.parts[part]
    component = plain.build(workspace.host)
    place = f"{plain.place}.training"
    source = ref.training.start_from
    if ref.checkpoint is not None and source is not None:
        raise TrainingError(
            f"{place}.start_from", "is set, and so is checkpoint", "leave one of the two out"
        )
    if ref.checkpoint is not None:
        load_state(component, Path(ref.checkpoint), ref.use)
    if component.needs_training:
        base = ref.checkpoint is not None
        if source is not None:
            base = not start_from(component, Path(source), f"{place}.start_from")
        adapt(component, ref.training, place, base)
    elif source is not None:
        raise TrainingError(
            f"{place}.start_from", f"is set, but {plain.use} is not trained", "leave it out"
        )
    return component.to(workspace.device)


def _without_checkpoint(ref: ComponentConfig) -> ComponentConfig:
    """The component as its checkpoint describes it, but untrained."""
    if ref.checkpoint is None:
        return ref
    options = read_manifest(Path(ref.checkpoint)).options
    return ref.model_copy(update={"checkpoint": None, "options": options})


def _training_run(
    workspace: Workspace, assembly: Assembly, part: str, component: Component
) -> TrainingRun:
    config = workspace.config.parts[part].training
    is_stage = workspace.config.slots[part].stage is not None
    make = _token_batches if is_stage else _audio_batches
    train_batches, valid_batches = make(workspace, assembly, part, component)
    notes: dict[str, Any] = {"data": workspace.data_name}
    return TrainingRun(
        part,
        workspace.config.slots[part].kind,
        workspace.config.parts[part].use,
        component,
        config,
        workspace.part_directory(part),
        train_batches,
        valid_batches,
        workspace.host,
        notes,
        workspace.report,
        _voice(workspace, assembly, part, component),
    )


def _voice(
    workspace: Workspace, assembly: Assembly, part: str, component: Component
) -> Voice | None:
    """What a stage is heard by, if somebody listens and its sampling is one that it can do now."""
    listeners = workspace.host.hook.segue_validation_audio.get_hookimpls()
    compiled = workspace.config.parts[part].training.compile  # for the shapes of training
    if not isinstance(component, StageLM) or not listeners or compiled:
        return None
    stage = workspace.config.stage(component.stage.name)
    assert stage is not None

    def codec() -> AcousticCodec:
        built = build_part(assembly.parts["codec"], workspace.host, allow_untrained=False)
        assert isinstance(built, AcousticCodec)
        return built.to(workspace.device)

    try:
        component.check_sampling(stage.sampling)
    except GenerationError:
        return None
    return Voice(codec, stage.sampling)


def _audio_batches(
    workspace: Workspace, assembly: Assembly, part: str, component: Component
) -> tuple[Batches, Batches | None]:
    config = workspace.config.parts[part].training
    assert isinstance(component, Tokenizer)
    rate = component.spec.sample_rate

    def crops(split: Split, seed: int) -> AudioCrops:
        recordings = workspace.recordings(split)
        return AudioCrops(recordings, rate, config.crop_seconds, config.batch_size, seed)

    valid = crops("valid", VALIDATION_SEED).batch if workspace.has_valid() else None
    return crops("train", config.seed).batch, valid


def _token_batches(
    workspace: Workspace, assembly: Assembly, part: str, component: Component
) -> tuple[Batches, Batches | None]:
    config = workspace.config.parts[part].training
    stage, config_stage = assembly.parts[part].stage, workspace.config.slots[part].stage
    assert stage is not None and config_stage is not None
    crop = config_stage.crop_seconds
    directory = workspace.directory / TOKENS

    def crops(split: Split, seed: int) -> TokenCrops:
        return TokenCrops(TokenStore(directory, split), stage, crop, config.batch_size, seed)

    held = has_split(directory, "valid")
    return (
        crops("train", config.seed).batch,
        crops("valid", VALIDATION_SEED).batch if held else None,
    )


def _fit(
    workspace: Workspace, part: str, component: Component, step: int, ending: str = ""
) -> Path:
    """Fit by one pass over the training recordings; a fitted checkpoint is final."""
    target = workspace.part_directory(part) / f"step-{step:08d}{ending}"
    if (target / STATE_JSON).is_file():
        return target
    assert isinstance(component, Tokenizer)
    recordings = workspace.recordings("train")
    # Evenly through the list: a manifest is ordered by corpus and speaker.
    total = float(recordings.seconds.sum())
    chosen = recordings[:: max(1, math.ceil(total / MAX_FIT_SECONDS))]
    torch.manual_seed(workspace.config.parts[part].training.seed)
    batches = whole_recordings(chosen, component.spec.sample_rate, FIT_PIECE_SECONDS)
    figures = component.fit(_reported(batches, workspace, part, len(chosen)))
    with atomic_directory(target) as temporary:
        steps = {"steps": step} if component.needs_training else {}
        trained = {**steps, "data": workspace.data_name, "recordings": len(chosen), **figures}
        use = workspace.config.parts[part].use
        save_component(component, temporary, workspace.config.slots[part].kind, use, trained)
        write_json(temporary / STATE_JSON, {"step": step})
    sweep(target.parent)
    workspace.host.call_hook("segue_checkpoint_saved", part=part, directory=target, step=step)
    return target


def _reported(batches: Any, workspace: Workspace, part: str, total: int) -> Any:
    for index, batch in zip(itertools.count(1), batches, strict=False):
        if workspace.progress is not None:
            workspace.progress(part, min(index, total), total)
        yield batch


def tokenize(workspace: Workspace, rank: int = 0, world: int = 1) -> Path:
    """Write the tokens of every recording with the workspace's trained tokenizers.

    Args:
        rank: which of the shards to write: every ``world``-th from this one on.
        world: among how many they are shared out.

    Raises:
        AssemblyError: if a tokenizer that must be trained is not.
    """
    assembly = assemble(workspace.current(stages=False), workspace.host)
    names = {"semantic": "semantic_tokenizer", "acoustic": "codec"}
    tokenizers: dict[str, Tokenizer] = {}
    for stream in assembly.streams:
        part = assembly.parts[names[stream]]
        component = build_part(part, workspace.host, allow_untrained=False)
        assert isinstance(component, Tokenizer)
        tokenizers[stream] = component.to(workspace.device)
    splits: Sequence[Split] = ("train", "valid") if workspace.has_valid() else ("train",)
    recordings = {split: workspace.recordings(split) for split in splits}
    directory = workspace.directory / TOKENS
    return write_store(
        directory, tokenizers, recordings, workspace.progress, rank=rank, world=world
    )


def train_all(workspace: Workspace) -> Path:
    """Tokenizers, tokens, stages, in that order; then the pipeline with all their weights.

    Parts that are complete, or that the config names a checkpoint for, are left as they are.

    Returns:
        A directory that ``Pipeline.from_pretrained`` takes.
    """
    own = connect(torch.device(workspace.device))
    parts = workspace.config.parts
    for part in (name for name in parts if not name.startswith("stages.")):
        _train_unless_given(workspace, part)
    wait_for_all()
    on_each(lambda: tokenize(workspace, own.rank, own.size))
    for part in (name for name in parts if name.startswith("stages.")):
        _train_unless_given(workspace, part)
    return on_first(lambda: export(workspace))


def _train_unless_given(workspace: Workspace, part: str) -> None:
    given = workspace.config.parts[part].checkpoint is not None
    assembly = assemble(workspace.current(stages=False), workspace.host)
    if not given and _fresh(workspace, assembly, part).learns:
        train_part(workspace, part)


def export(workspace: Workspace, lm_dtype: torch.dtype | None = None) -> Path:
    """Write ``pipeline/`` from the newest checkpoints."""
    pipeline = Pipeline.from_config(workspace.current(), host=workspace.host)
    target = workspace.directory / Path(PIPELINE_FILE).stem
    return pipeline.save_pretrained(target, lm_dtype=lm_dtype)
