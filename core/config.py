"""Describe a pipeline: everything that a YAML config may say. Imports no torch.

``segue.core.config_files`` reads configs, ``segue.core.assembly`` proves that their parts fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveFloat, field_validator, model_validator

from segue.core.options import Decoding, GuidedConfig, Options, Sampling
from segue.core.records import Kind
from segue.core.spec import StreamSlice
from segue.core.validation import refusal

Decay = Annotated[float, Field(ge=0, lt=1)]
#: Work that a stage's speed is measured at: one row to the end, one row in pieces, many rows.
Work = Literal["continue", "stream", "batch"]


class LoraConfig(Options):
    """Train low-rank adapters instead of all weights (Hu et al., arXiv 2106.09685).

    Attributes:
        rank: R of each update.
        alpha: updates are scaled by ``alpha / rank``.
        dropout: share of input channels that an update leaves out in a training step.
        targets: glob patterns of names of linear layers; None: all that are larger than the rank.
        also_train: glob patterns of tensors that are trained themselves, such as ``heads.*``.
    """

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] | None = Field(default=None, min_length=1)
    also_train: tuple[str, ...] = ()


class TrainingConfig(Options):
    """Settings of one part's training.

    Attributes:
        steps: optimisation steps in all; with 0 a tokenizer's checkpoint is only fitted anew.
        batch_size: crops per step, over all ranks and all accumulated pieces.
        accumulate: pieces that each rank splits its crops of a step into; more take less memory.
        crop_seconds: length of each crop; a stage takes its own ``crop_seconds`` instead.
        learning_rate: peak of the schedule.
        schedule: what follows a linear warm-up: ``cosine`` or ``linear`` decay to zero,
            ``inverse_sqrt`` of the step, or ``constant``.
        warmup_steps: steps of the warm-up.
        optimizer: ``adamw``, or ``muon`` for the linear layers of blocks (arXiv 2502.16982) and
            AdamW for the rest; a rate that fits one works for the other.
        weight_decay: decoupled (AdamW, arXiv 1711.05101); biases and norms are exempt.
        betas: AdamW's moment decays.
        gradient_clip: largest global gradient norm.
        precision: number format: ``32-true``; ``bf16-mixed`` or ``16-mixed``, matrix products in
            half precision; ``bf16-true``, the weights too (stages only).
        strategy: use of several ranks: ``ddp`` copies the whole part to each; ``fsdp`` shards
            weights, gradients and moments (stages only).
        ema: decay of a running mean of the weights, such as 0.999, which validation and
            checkpoints then use; 0 turns it off.
        compile: compile the blocks of the part, or its whole step, with ``torch.compile``.
        activation_checkpointing: recompute activations of blocks instead of keeping them: a third
            more time, much less memory.
        adversary_from: step from which a part that has an adversary is trained against it.
        adversary_learning_rate: the adversary's peak; its schedule has the same shape.
        rollbacks: how often training goes back to an earlier checkpoint, with other crops, when
            losses are not finite or the part reports trouble; after that it stops.
        start_from: a checkpoint of any component; tensors of the same name and shape are taken from
            it, such as those of a `delay_transformer` for a `masked_transformer` of plain
            transformer layers (Gong et al., arXiv 2410.17891). Options stay as they are.
        guided: learn to draw without guidance what the weights of ``start_from`` draw with it
            (guidance distillation, Meng et al., arXiv 2210.03142; stages only).
        freeze: glob patterns of names of tensors that are not trained, such as
            ``blocks.[0-3].*``; a pattern may begin at any part of a name.
        lora: train adapters instead of the weights (stages only).
        seed: of initial weights, crops and dropout.
        save_every: steps between checkpoints.
        keep: number of newest checkpoints that are kept.
        best: number of checkpoints of the lowest validation loss that are kept as well. A new
            lowest one is saved at once, unless this is 0.
        validate_every: steps between validations.
        validation_batches: batches of one validation.
        workers: processes that prepare coming batches; 0 uses a thread.
    """

    steps: int = Field(default=1000, ge=0)
    batch_size: int = Field(default=16, ge=1, le=1_000_000)
    accumulate: int = Field(default=1, ge=1, le=1_000_000)
    crop_seconds: float = Field(default=1.0, gt=0)
    learning_rate: float = Field(default=3e-4, gt=0, le=1)
    schedule: Literal["cosine", "linear", "inverse_sqrt", "constant"] = "cosine"
    warmup_steps: int = Field(default=100, ge=0)
    optimizer: Literal["adamw", "muon"] = "adamw"
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    gradient_clip: float = Field(default=1.0, gt=0)
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true"] = "32-true"
    strategy: Literal["ddp", "fsdp"] = "ddp"
    ema: Decay = 0.0
    compile: bool = False
    activation_checkpointing: bool = False
    adversary_from: int = Field(default=0, ge=0)
    adversary_learning_rate: float = Field(default=3e-4, gt=0, le=1)
    rollbacks: int = Field(default=2, ge=0)
    start_from: str | None = None
    guided: GuidedConfig | None = None
    freeze: tuple[str, ...] = ()
    lora: LoraConfig | None = None
    seed: int = Field(default=0, ge=0, lt=2**32)
    save_every: int = Field(default=500, ge=1)
    keep: int = Field(default=2, ge=1)
    best: int = Field(default=1, ge=0)
    validate_every: int = Field(default=500, ge=1)
    validation_batches: int = Field(default=8, ge=1)
    workers: int = Field(default=0, ge=0, le=256)

    def without_start(self) -> TrainingConfig:
        """Return a copy without the weights that training starts from and learns from."""
        return self.model_copy(update={"start_from": None, "guided": None})


class ComponentConfig(Options):
    """A plugin by its registered name, with its options and how it is trained.

    Attributes:
        use: the registered name, such as ``soundstream.v1``.
        options: what the plugin's own options model takes.
        checkpoint: directory of weights, relative to the config file; None trains the part anew.
        training: settings of its training.
    """

    use: str
    options: dict[str, Any] = Field(default_factory=dict)
    checkpoint: str | None = None
    training: TrainingConfig = TrainingConfig()


def _canonical_slice(text: str) -> str:
    with refusal():
        return str(StreamSlice.parse(text))


Slice = Annotated[str, AfterValidator(_canonical_slice)]


class StageConfig(Options):
    """One stage: the slice it predicts, the slices it is given, and its language model.

    Attributes:
        name: of the stage, in paths and tables.
        predicts: a stream slice, such as ``acoustic[0:4]``.
        given: stream slices it is conditioned on.
        lm: the language model.
        crop_seconds: length of a training crop and of the longest context in generation.
        overlap: least part of a window that is context when generation moves to the next window.
            With 0 full windows are independent, as the fine stage's are in the paper; a last
            window that is not full is filled with context.
        sampling: temperature, top-k, top-p, guidance.
        decoding: number format and backend of the weights while generating.
        instead_of: a stage that this one can replace, as it predicts the same from the same. Of
            such stages the fastest for the device and the work is run.
        speed: seconds of audio that the stage makes in a second, by device (``cpu``, ``cuda``) and
            work; ``benchmarks/stage_choice.py`` measures it.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    predicts: Slice
    given: tuple[Slice, ...] = ()
    lm: ComponentConfig
    crop_seconds: float = Field(default=10.0, gt=0)
    overlap: float = Field(default=0.5, ge=0.0, lt=1.0)
    sampling: Sampling = Sampling()
    decoding: Decoding = Decoding()
    instead_of: str | None = None
    speed: dict[str, dict[Work, PositiveFloat]] = Field(default_factory=dict)


class PromptConfig(Options):
    """The part of a prompt that is used, and its level.

    Attributes:
        min_seconds: shorter prompts are refused.
        max_seconds: only the end of longer prompts is used.
        level: RMS, that of the training data, that prompts are brought to before they are
            tokenized; the result is brought back to the prompt's own level. None changes nothing.
        match_codec: make a continuation as much louder or quieter as the recorded prompt is than
            its codec version: few levels of a codec lose some of the level.
        make_up_db: make what is decoded for a continuation louder by this: what the stages lose
            besides, measured on held-out recordings.
    """

    min_seconds: float = Field(default=0.5, ge=0.01)
    max_seconds: float = Field(default=10.0, ge=0.01)
    level: float | None = Field(default=None, ge=1e-4, le=1)
    match_codec: bool = False
    make_up_db: float = Field(default=0.0, ge=-12, le=12)

    @model_validator(mode="after")
    def _some_prompt_fits(self) -> PromptConfig:
        if self.max_seconds < self.min_seconds:
            raise ValueError(
                f"max_seconds {self.max_seconds:g} is below min_seconds {self.min_seconds:g}"
            )
        return self


@dataclass(frozen=True)
class Slot:
    """A place of a pipeline that one component fills: a tokenizer, or the model of a stage."""

    # Names the part in commands, hooks, errors and directories: ``codec``, ``stages.coarse``.
    name: str
    kind: Kind  # the kind of plugin that fits
    place: str  # the component's path in the config: ``codec``, ``stages.coarse.lm``
    component: ComponentConfig  # the plugin that fills it
    stage: StageConfig | None = None  # the stage whose model it is; None for a tokenizer

    @property
    def folder(self) -> Path:
        """The part's own folder below a pipeline's or a training's directory."""
        return Path(*self.name.split("."))


class PipelineConfig(Options):
    """A whole pipeline.

    Attributes:
        format_version: number of this file format.
        name: of the pipeline, for tables and metadata.
        description: one sentence; says what the weights were trained on, and how far.
        semantic_tokenizer: absent in an acoustic-only pipeline.
        codec: turns acoustic tokens into sound.
        stages: in the order they run.
        prompt: which part of a prompt is used, and at what level.
        threads: of the CPU; None takes the cores that there are. ``--threads`` and
            ``SEGUE_THREADS`` win.
    """

    format_version: Literal[1] = 1
    name: str
    description: str = ""
    semantic_tokenizer: ComponentConfig | None = None
    codec: ComponentConfig
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    prompt: PromptConfig = PromptConfig()
    threads: int | None = Field(default=None, ge=1)

    @field_validator("stages")
    @classmethod
    def _names_are_unique(cls, stages: tuple[StageConfig, ...]) -> tuple[StageConfig, ...]:
        names = [stage.name for stage in stages]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two stages are called {twice[0]!r}; give each its own name")
        return stages

    def stage(self, name: str) -> StageConfig | None:
        return next((stage for stage in self.stages if stage.name == name), None)

    def replaces(self, stage: StageConfig) -> StageConfig | None:
        """Return the stage that ``stage`` can replace; None if it runs in its own right."""
        return None if stage.instead_of is None else self.stage(stage.instead_of)

    def running(self, device: str, work: Work) -> tuple[StageConfig, ...]:
        """Return the stages that run: of those that can replace each other the fastest.

        Without a measured speed for the device and the work, the one that the others name.
        """
        chosen: dict[str, StageConfig] = {}
        for stage in self.stages:  # each stage comes after the one that it can replace
            place = self.replaces(stage) or stage
            best = chosen.setdefault(place.name, place)
            speeds = (one.speed.get(device, {}).get(work, 0.0) for one in (best, stage))
            chosen[place.name] = best if next(speeds) >= next(speeds) else stage
        return tuple(chosen.values())

    @property
    def slots(self) -> dict[str, Slot]:
        """Every part under its name, tokenizers first, then stages in the order they run."""
        found = [Slot("codec", "codec", "codec", self.codec)]
        if self.semantic_tokenizer is not None:
            kind: Kind = "semantic_tokenizer"
            found.insert(0, Slot(kind, kind, kind, self.semantic_tokenizer))
        found += [
            Slot(f"stages.{stage.name}", "stage_lm", f"stages.{stage.name}.lm", stage.lm, stage)
            for stage in self.stages
        ]
        return {slot.name: slot for slot in found}

    @property
    def parts(self) -> dict[str, ComponentConfig]:
        """Every component under the name of its part: ``codec``, ``stages.coarse``, ..."""
        return {name: slot.component for name, slot in self.slots.items()}


def replace_parts(config: PipelineConfig, parts: Mapping[str, ComponentConfig]) -> PipelineConfig:
    """Return the config with some components replaced, by the names of their parts."""
    stages = tuple(
        stage.model_copy(update={"lm": parts.get(f"stages.{stage.name}", stage.lm)})
        for stage in config.stages
    )
    tokenizers = {key: parts[key] for key in ("semantic_tokenizer", "codec") if key in parts}
    return config.model_copy(update={"stages": stages, **tokenizers})
