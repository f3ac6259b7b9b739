"""Train the parts of a pipeline in a training directory, one by one or all of them.

A part is named by its path in the config: ``semantic_tokenizer``, ``codec``, ``stages.coarse``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from segue.core.assembly import TOKENIZER_OF, Assembly, Part, assemble, is_of
from segue.core.checkpoint import build_part, load_state, save_component
from segue.core.checkpoint_files import FITTED, STATE_JSON, newest_checkpoint, read_manifest
from segue.core.config import ComponentConfig, PipelineConfig, replace_parts
from segue.core.config_files import write_pipeline_file
from segue.core.domain import PIPELINE_FILE
from segue.core.errors import AssemblyError, DataError, TrainingError
from segue.core.files import atomic_directory, write_json
from segue.core.interfaces import AcousticCodec, Component, StageLM, Tokenizer, WaveBatch
from segue.core.plugins import PluginHost
from segue.core.progress import Progress
from segue.core.spec import StageSpec
from segue.data.audio_crops import AudioCrops, whole_recordings
from segue.data.places import is_url
from segue.data.recordings import Recordings, Split
from segue.data.sources import of_split, read_recordings
from segue.data.store_plan import has_split
from segue.data.store_writer import write_store
from segue.data.token_crops import TokenCrops
from segue.data.token_store import TokenStore
from segue.data.tokenizing import check_tokenizer
from segue.inference.pipeline import Pipeline
from segue.inference.promises import calling, check_fitted
from segue.inference.threads import use_threads
from segue.training.adaptation import adapt, plain_state, start_from
from segue.training.loop import Report, TrainingRun, train
from segue.training.prefetch import Batch, Batches
from segue.training.ranks import connect, on_each, on_first, wait_for_all
from segue.training.saving import check_resumable, step_of, sweep
from segue.training.teacher import teacher_of
from segue.training.validation_audio import StageDecoder

CONFIG_FILE = "config.yaml"
TOKENS = "tokens"  # the token store in a training directory
FIT_PIECE_SECONDS = 30.0
MAX_FIT_SECONDS = 7200.0
VALIDATION_SEED = 7_777_777


@dataclass
class Workspace:
    """A training directory: ``config.yaml``, one folder per part, ``tokens/`` and ``pipeline/``."""

    config: PipelineConfig  # resolved config, as given; ``current`` adds checkpoints made here
    directory: Path  # where everything goes
    # Recordings, as ``read_recordings`` takes them; None where tokens are enough.
    data: Path | str | None
    host: PluginHost  # finds plugins and calls their hooks
    device: torch.device | str = "cpu"  # to train on
    report: Report | None = None  # takes figures of the steps
    progress: Progress | None = None  # takes how much of a pass over the data is done
    say: Callable[[str], None] | None = None  # takes sentences for the user

    def __post_init__(self) -> None:
        use_threads(self.config.threads)

    def part_directory(self, part: str) -> Path:
        """Return where a part's checkpoints and log are."""
        return self.directory / self.config.slots[part].folder

    def current(self, stages: bool = True) -> PipelineConfig:
        """Return the config with the newest checkpoint of every part that was trained here.

        Args:
            stages: False leaves the stages' checkpoints out: one that was trained on older tokens
                must not stop the training of a part.

        Raises:
            TrainingError: if a part was trained here as another plugin.
        """
        found = {}
        for part, ref in self.config.parts.items():
            if part.startswith("stages.") and not stages:
                found[part] = _without_checkpoint(ref)
                continue
            checkpoint = self.newest(part)
            if checkpoint is not None:
                found[part] = ref.model_copy(update={"checkpoint": str(checkpoint.resolve())})
        return replace_parts(self.config, found)

    def assembly(self) -> Assembly:
        """Assemble the parts as they were trained here but for stages, or raise a SegueError."""
        try:
            return assemble(self.current(stages=False), self.host)  # names checkpoints made here
        except AssemblyError as error:
            if ".options." in error.place and str(self.directory.resolve()) in error.problem:
                error.fix = f"leave it as in {self.directory / CONFIG_FILE}, or name a new -o"
            raise

    def newest(self, part: str) -> Path | None:
        """Return the newest checkpoint of a part that was trained here, if any.

        Raises:
            TrainingError: if it was trained as another plugin than the config names.
        """
        checkpoint = newest_checkpoint(self.part_directory(part))
        if checkpoint is None:
            return None
        manifest, slot = read_manifest(checkpoint), self.config.slots[part]
        if not is_of(manifest, slot, self.host):
            raise TrainingError(
                part,
                f"is {slot.component.use}, but was trained as {manifest.use} in {self.directory}",
                f"go on with --config {self.directory / CONFIG_FILE}, or name a new -o",
            )
        return checkpoint

    @property
    def data_name(self) -> str:
        """Folder and file name of the data; its place on this machine is private."""
        if self.data is None:
            return "tokens"
        here = self.data if is_url(str(self.data)) else Path(self.data).resolve()
        return "/".join(PurePosixPath(here).parts[-2:])

    @cached_property
    def _every_recording(self) -> Recordings:
        # Read once: listing a folder opens all of its files.
        if self.data is None:
            raise DataError("--data", "is missing", "name a folder of audio or a CSV manifest")
        return read_recordings(self.data)

    def recordings(self, split: Split) -> Recordings:
        """Return the recordings of a split."""
        every = self._every_recording
        assert self.data is not None
        return of_split(every, split, self.data)

    def has_valid(self) -> bool:
        """Return whether recordings are held out for validation."""
        return len(self._every_recording.of_split("valid")) > 0


def train_part(workspace: Workspace, part: str) -> Path:
    """Train one part, or go on training it, and return its newest checkpoint.

    Raises:
        TrainingError: if there is no such part or it learns nothing.
        SegueError: if data, checkpoints or options cannot be used.
        Stopped: after Ctrl-C or SIGTERM.
    """
    parts = workspace.config.parts
    if part not in parts:
        problem, known = "is not a part of this pipeline", ", ".join(parts)
        raise TrainingError(part, problem, f"choose one of {known}")
    newest = workspace.newest(part)  # refuses one of another plugin
    connect(torch.device(workspace.device))
    wait_for_all()  # parts that other ranks trained before are complete
    assembly = workspace.assembly()
    plain = assembly.parts[part]
    if newest is not None:  # before this config replaces the one that it was trained with
        check_resumable(newest, plain, parts[part].training, plain.stage)
    # On every rank, so that an error on one ends all instead of leaving the others waiting.
    component = on_each(lambda: _fresh(workspace, assembly, part))
    if not component.learns:
        raise TrainingError(part, f"{parts[part].use} learns nothing", "use it as it is")
    if isinstance(component, StageLM):  # before hours of training, not after them
        stage = workspace.config.stage(component.stage.name)
        assert stage is not None
        component.check_sampling(stage.sampling)
    if _is_only_fitted(parts[part], component, part):
        on_each(lambda: _fitting_batches(workspace, part, component))
        on_first(lambda: _write_config(workspace))
        step = min(1, parts[part].training.steps)
        return on_first(lambda: _fit(workspace, plain, component, step))
    newest = train(on_each(lambda: _training_run(workspace, assembly, part, component)))
    if component.needs_fitting:
        # Its own checkpoint comes after the trained one, from which training can go on.
        step = step_of(newest)
        return on_first(lambda: _fit(workspace, plain, component, step, FITTED))
    if isinstance(component, Tokenizer):
        on_each(lambda: check_tokenizer(component, workspace.recordings("train")))
    return newest


def train_all(workspace: Workspace) -> Path:
    """Train tokenizers, write tokens, train stages; then export the pipeline.

    Parts that are complete, or that the config names a checkpoint for, are left as they are.

    Returns:
        A directory that ``Pipeline.from_pretrained`` takes.
    """
    own = connect(torch.device(workspace.device))  # tokenizing is shared out to the ranks
    parts = workspace.config.parts
    assembly = workspace.assembly()
    known = all(one.checkpoint for one in assembly.parts.values() if one.stage is None)
    for part, plain in assembly.parts.items():  # before any is trained for long
        newest = workspace.newest(part)
        if newest is not None and parts[part].checkpoint is None:
            stage = plain.stage if known else None  # its tokens may be those of a new tokenizer
            check_resumable(newest, plain, parts[part].training, stage)
    for part in (name for name in parts if not name.startswith("stages.")):
        _train_unless_given(workspace, part)
    wait_for_all()
    on_each(lambda: tokenize(workspace, own.rank, own.size))
    for part in (name for name in parts if name.startswith("stages.")):
        _train_unless_given(workspace, part)
    return on_first(lambda: export(workspace))


def _train_unless_given(workspace: Workspace, part: str) -> None:
    given = workspace.config.parts[part].checkpoint
    if given is None and _fresh(workspace, workspace.assembly(), part).learns:
        train_part(workspace, part)
    if given is not None and workspace.newest(part) is None and workspace.say is not None:
        workspace.say(f"{part}: stays as {given} has it; `segue train {part}` trains it further")


def tokenize(workspace: Workspace, rank: int = 0, world: int = 1, workers: int = 1) -> Path:
    """Write the tokens of every recording with the trained tokenizers; return their directory.

    Args:
        rank: writes every ``world``-th shard from this number on.
        workers: processes that share the recordings of each shard, on the CPU.

    Raises:
        AssemblyError: if a tokenizer must be trained first.
    """
    assembly = workspace.assembly()
    tokenizers: dict[str, Tokenizer] = {}
    for stream in assembly.streams:
        part = assembly.parts[TOKENIZER_OF[stream]]
        component = build_part(part, workspace.host, allow_untrained=False)
        assert isinstance(component, Tokenizer)
        tokenizers[stream] = component.to(workspace.device)
    splits: Sequence[Split] = ("train", "valid") if workspace.has_valid() else ("train",)
    recordings = {split: workspace.recordings(split) for split in splits}
    directory = workspace.directory / TOKENS
    return write_store(
        directory, tokenizers, recordings, workspace.progress,
        rank=rank, world=world, workers=workers,
    )  # fmt: skip


def export(workspace: Workspace) -> Path:
    """Write ``pipeline/`` from the newest checkpoints and return its directory."""
    pipeline = Pipeline.from_config(workspace.current(), host=workspace.host)
    target = workspace.directory / Path(PIPELINE_FILE).stem
    return pipeline.save_pretrained(target)


def _write_config(workspace: Workspace) -> None:
    """Write the resolved config, once it is known that training can start with it."""
    workspace.directory.mkdir(parents=True, exist_ok=True)
    write_pipeline_file(workspace.config, workspace.directory / CONFIG_FILE)


def _without_checkpoint(ref: ComponentConfig) -> ComponentConfig:
    """Return the component as its checkpoint describes it, but untrained."""
    if ref.checkpoint is None:
        return ref
    saved = read_manifest(Path(ref.checkpoint))
    described = {"use": saved.use, "options": saved.options}
    return ref.model_copy(update={"checkpoint": None, **described})


def _fresh(workspace: Workspace, assembly: Assembly, part: str) -> Component:
    """Return the component as it is before training.

    Its weights are those of the checkpoint that the config names (fine-tuning); without one they
    depend on the seed, and on ``start_from``.
    """
    ref = workspace.config.parts[part]
    torch.manual_seed(ref.training.seed)  # of the initial weights
    plain = assembly.parts[part]
    component = plain.build(workspace.host)
    place = f"{plain.place}.training"
    source = ref.training.start_from
    if ref.checkpoint is not None and source is not None:
        problem = "is set, and so is checkpoint"
        raise TrainingError(f"{place}.start_from", problem, "leave one of the two out")
    if ref.checkpoint is not None:
        load_state(component, Path(ref.checkpoint), plain.use)
    has_network = next(component.parameters(), None) is not None
    if source is not None and not (component.needs_training or has_network):
        problem = f"is set, but {plain.use} is not trained"
        raise TrainingError(f"{place}.start_from", problem, "leave it out")
    if component.needs_weights and source is None and ref.checkpoint is None:
        raise TrainingError(
            f"{place}.start_from",
            f"is not set: {plain.use} fits clusters on a network that was trained before",
            f"name a checkpoint of one: --set {place}.start_from=DIR",
        )
    base = ref.checkpoint is not None
    if source is not None:
        base = not start_from(component, Path(source), f"{place}.start_from")
    if component.needs_training:
        adapt(component, ref.training, place, base)
    return component.to(workspace.device)


def _is_only_fitted(ref: ComponentConfig, component: Component, part: str) -> bool:
    """Return whether fitting comes without training before it."""
    if not component.needs_training:
        return True
    if ref.training.steps == 0 and (not component.needs_fitting or ref.checkpoint is None):
        fix = "set it to 1 or more, or name the checkpoint of a trained tokenizer"
        raise TrainingError(f"{part}.training.steps", "is 0", fix)
    return ref.training.steps == 0


def _training_run(
    workspace: Workspace, assembly: Assembly, part: str, component: Component
) -> TrainingRun:
    config, plain = workspace.config.parts[part].training, assembly.parts[part]
    train_batches = _batches(workspace, part, component, "train", config.seed)
    assert train_batches is not None
    return TrainingRun(
        part=part,
        kind=plain.kind,
        use=plain.use,
        component=component,
        config=config,
        directory=workspace.part_directory(part),
        train_batches=train_batches,
        valid_batches=_batches(workspace, part, component, "valid", VALIDATION_SEED),
        host=workspace.host,
        teacher=teacher_of(component, config, f"{plain.place}.training", workspace.host),
        notes={"data": workspace.data_name},
        report=workspace.report,
        decoder=_stage_decoder(workspace, assembly, part, component),
        say=workspace.say,
        started=partial(_write_config, workspace),
    )


def _batches(
    workspace: Workspace, part: str, component: Component, split: Split, seed: int
) -> Batches | None:
    """Return crops of tokens for a stage, of audio for a tokenizer; None if nothing is held out."""
    config = workspace.config.parts[part].training
    if isinstance(component, StageLM):
        if split == "valid" and not has_split(workspace.directory / TOKENS, split):
            return None
        return _token_crops(workspace, component.stage, split, config.batch_size, seed).batch
    if split == "valid" and not workspace.has_valid():
        return None
    assert isinstance(component, Tokenizer)
    rate, recordings = component.spec.sample_rate, workspace.recordings(split)
    return AudioCrops(recordings, rate, config.crop_seconds, config.batch_size, seed).batch


def _token_crops(
    workspace: Workspace, stage: StageSpec, split: Split, batch_size: int, seed: int
) -> TokenCrops:
    seconds = next(s.crop_seconds for s in workspace.config.stages if s.name == stage.name)
    store = TokenStore(workspace.directory / TOKENS, split)
    return TokenCrops(store, stage, seconds, batch_size, seed)


def _stage_decoder(
    workspace: Workspace, assembly: Assembly, part: str, component: Component
) -> StageDecoder | None:
    """Return what makes a stage audible, if a plugin listens."""
    listeners = workspace.host.hook.segue_validation_audio.get_hookimpls()
    # Compiled blocks are compiled for the shapes of training.
    compiled = workspace.config.parts[part].training.compile
    if not isinstance(component, StageLM) or not listeners or compiled:
        return None
    stage = workspace.config.stage(component.stage.name)
    assert stage is not None

    def codec() -> AcousticCodec:
        built = build_part(assembly.parts["codec"], workspace.host, allow_untrained=False)
        assert isinstance(built, AcousticCodec)
        return built.to(workspace.device)

    return StageDecoder(codec, stage.sampling)


def _fit(
    workspace: Workspace, plain: Part, component: Component, step: int, ending: str = ""
) -> Path:
    """Fit by one pass over the training data; the checkpoint is final."""
    part = plain.name
    target = workspace.part_directory(part) / f"step-{step:08d}{ending}"
    if (target / STATE_JSON).is_file():
        return target
    component.eval()  # no dropout while features are computed
    batches, seen = _fitting_batches(workspace, part, component)
    torch.manual_seed(workspace.config.parts[part].training.seed)
    with calling(component, "fit"):
        figures = check_fitted(component, component.fit(batches))
    if isinstance(component, Tokenizer):
        check_tokenizer(component, workspace.recordings("train"))
    with atomic_directory(target) as temporary:
        steps = {"steps": step} if component.needs_training else {}
        trained = {**steps, "data": workspace.data_name, **seen, **figures}
        state = plain_state(component, component.state_dict())
        save_component(component, temporary, plain.kind, plain.use, trained, state=state)
        write_json(temporary / STATE_JSON, {"step": step})
    sweep(target.parent)
    workspace.host.call_hook("segue_checkpoint_saved", part=part, directory=target, step=step)
    return target


def _fitting_batches(
    workspace: Workspace, part: str, component: Component
) -> tuple[Iterator[Any], dict[str, int]]:
    """Return the batches of one pass, and what to write down about them.

    A tokenizer hears whole recordings, a stage gets every crop of the training tokens once.
    """
    batches: Iterable[Batch]
    if isinstance(component, StageLM):
        crops = _token_crops(workspace, component.stage, "train", batch_size=1, seed=0)
        count, total, counted = crops.epochs.size, crops.epochs.size, "crops"
        batches = (crops.batch(number) for number in range(total))
    else:
        assert isinstance(component, Tokenizer)
        recordings = workspace.recordings("train")
        # Evenly through the list: a manifest is ordered by corpus and speaker.
        every = math.ceil(float(recordings.seconds.sum()) / MAX_FIT_SECONDS)
        chosen = recordings[:: max(1, every)]
        count, total = len(chosen), round(float(chosen.seconds.sum()))
        counted = "recordings"
        batches = whole_recordings(chosen, component.spec.sample_rate, FIT_PIECE_SECONDS)

    def reported() -> Iterator[Batch]:
        done = 0.0  # crops, or seconds of audio
        for batch in batches:
            yield batch
            if isinstance(batch, WaveBatch) and isinstance(component, Tokenizer):
                done += float(batch.lengths.sum()) / component.spec.sample_rate
            else:
                done += 1
            if workspace.progress is not None:
                workspace.progress(part, min(round(done), total), total)
        if workspace.say is not None and counted == "recordings":
            workspace.say(f"{part}: heard {done / 3600:.2f} h; clustering")

    return reported(), {counted: count}
