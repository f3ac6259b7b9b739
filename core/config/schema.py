"""The shape of a pipeline config: what a YAML file may say. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from segue.core.options import Decoding, Options, Sampling
from segue.core.spec import StreamSlice
from segue.core.validation import refusal

Decay = Annotated[float, Field(ge=0, lt=1)]


class LoraConfig(Options):
    """Low-rank adapters in place of a training of all weights (Hu et al., arXiv 2106.09685).

    Attributes:
        rank: R of each update.
        alpha: updates are scaled by ``alpha / rank``.
        dropout: share of input channels that updates do without in a training step.
        targets: glob patterns of names of linear layers; None takes all that are larger than the
            rank.
        also_train: glob patterns of tensors that are trained themselves, such as ``heads.*``.
    """

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] | None = Field(default=None, min_length=1)
    also_train: tuple[str, ...] = ()


class TrainingConfig(Options):
    """How one part is trained.

    Attributes:
        steps: optimisation steps in all. With 0 a tokenizer that has a checkpoint is not trained,
            but fitted anew.
        batch_size: crops per step, over all ranks and all pieces that are accumulated.
        accumulate: pieces that each rank cuts its crops of a step into, to learn from one after the
            other; more take less memory.
        crop_seconds: length of each crop; a stage takes its own ``crop_seconds`` instead.
        learning_rate: peak of the schedule.
        schedule: what follows a linear warm-up: ``cosine`` or ``linear`` decay to zero,
            ``inverse_sqrt`` of the step, or ``constant``.
        warmup_steps: steps of the warm-up.
        weight_decay: decoupled (AdamW, arXiv 1711.05101); biases and norms are exempt.
        betas: AdamW's moment decays.
        gradient_clip: largest global gradient norm.
        precision: number format: ``32-true``; ``bf16-mixed`` or ``16-mixed``, matrix products in
            half precision; ``bf16-true``, the weights too (stages only).
        strategy: of several ranks: ``ddp``, each has the whole part; ``fsdp``, its weights,
            gradients and moments are shared out (stages only).
        ema: decay of a running mean of the weights, such as 0.999; validation and checkpoints then
            have the mean. 0 does without.
        compile: compile the blocks of the part, or its whole step, with ``torch.compile``.
        activation_checkpointing: compute activations of blocks again when they are needed, in place
            of keeping them: a third more time, much less memory.
        adversary_from: step from which a part that has an adversary is trained against it.
        adversary_learning_rate: the adversary's peak; its schedule has the same shape.
        rollbacks: how often training goes back to an earlier checkpoint, with other crops, when
            losses are not finite or the part reports trouble; after that it stops.
        start_from: a checkpoint of any component, whose tensors are taken that have the name and
            the shape of one here, such as those of a `delay_transformer` for a
            `masked_transformer` of plain transformer layers (adapting what was trained from left
            to right to filling masks: Gong et al., arXiv 2410.17891). Options stay as they are.
        freeze: glob patterns of names of tensors that stay as they are, such as
            ``blocks.[0-3].*``; a pattern may begin at any part of a name.
        lora: adapters in place of the weights; only for stages.
        seed: of initial weights, crops and dropout.
        save_every: steps between checkpoints.
        keep: checkpoints kept, the newest.
        best: checkpoints kept beside them: those of the lowest validation loss. A new lowest one is
            saved at once, unless this is 0.
        validate_every: steps between validations.
        validation_batches: batches of one validation.
        workers: processes that prepare coming batches; 0 leaves it to a thread.
    """

    steps: int = Field(default=1000, ge=0)
    batch_size: int = Field(default=16, ge=1)
    accumulate: int = Field(default=1, ge=1)
    crop_seconds: float = Field(default=1.0, gt=0)
    learning_rate: float = Field(default=3e-4, gt=0, le=1)
    schedule: Literal["cosine", "linear", "inverse_sqrt", "constant"] = "cosine"
    warmup_steps: int = Field(default=100, ge=0)
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
    freeze: tuple[str, ...] = ()
    lora: LoraConfig | None = None
    seed: int = Field(default=0, ge=0, lt=2**32)
    save_every: int = Field(default=500, ge=1)
    keep: int = Field(default=2, ge=1)
    best: int = Field(default=1, ge=0)
    validate_every: int = Field(default=500, ge=1)
    validation_batches: int = Field(default=8, ge=1)
    workers: int = Field(default=0, ge=0)


class ComponentConfig(Options):
    """A plugin by its registered name, with its options and how it is trained.

    ``checkpoint`` names a directory of trained weights, relative to the config file; parts that
    learn nothing need none.
    """

    use: str
    options: dict[str, Any] = Field(default_factory=dict)
    checkpoint: str | None = None
    training: TrainingConfig = TrainingConfig()


class StageConfig(Options):
    """One stage: which slice it predicts, given which, by which language model.

    Attributes:
        name: of the stage, in paths and tables.
        predicts: a stream slice, such as ``acoustic[0:4]``.
        given: stream slices it is conditioned on.
        lm: the language model.
        crop_seconds: length of a training crop and of the longest context in generation.
        overlap: least part of a window that is context when generation moves to the next one. With
            0, full windows are independent, as the fine stage's are in the paper; a last one that
            is not full takes in what came before.
        sampling: temperature, top-k, top-p, guidance.
        decoding: number format and backend of the weights while generating.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    predicts: str
    given: tuple[str, ...] = ()
    lm: ComponentConfig
    crop_seconds: float = Field(default=10.0, gt=0)
    overlap: float = Field(default=0.5, ge=0.0, lt=1.0)
    sampling: Sampling = Sampling()
    decoding: Decoding = Decoding()

    @field_validator("predicts")
    @classmethod
    def _predicts_is_a_slice(cls, value: str) -> str:
        return _slice(value)

    @field_validator("given")
    @classmethod
    def _given_are_slices(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_slice(item) for item in value)


def _slice(text: str) -> str:
    """The slice in its plain form."""
    with refusal():
        return str(StreamSlice.parse(text))


class PromptConfig(Options):
    """What of a prompt is used, and how loud.

    Attributes:
        min_seconds: shorter prompts are refused.
        max_seconds: of longer prompts the end is taken.
        level: RMS that prompts are brought to before they are tokenized, that of the training
            data; the result is brought back to the prompt's own level. None leaves them alone.
    """

    min_seconds: float = Field(default=0.5, ge=0.01)
    max_seconds: float = Field(default=10.0, ge=0.01)
    level: float | None = Field(default=None, gt=0, le=1)

    @model_validator(mode="after")
    def _some_prompt_fits(self) -> PromptConfig:
        if self.max_seconds < self.min_seconds:
            raise ValueError(
                f"max_seconds ({self.max_seconds:g}) must be at least min_seconds "
                f"({self.min_seconds:g})"
            )
        return self


class PipelineConfig(Options):
    """A whole pipeline.

    Attributes:
        name: of the pipeline, for tables and metadata.
        description: one sentence; says what weights were trained on, and how far.
        semantic_tokenizer: absent in an acoustic-only pipeline.
        codec: what turns acoustic tokens into sound.
        stages: in the order they run.
    """

    format_version: Literal[1] = 1
    name: str
    description: str = ""
    semantic_tokenizer: ComponentConfig | None = None
    codec: ComponentConfig
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    prompt: PromptConfig = PromptConfig()

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

    @property
    def parts(self) -> dict[str, ComponentConfig]:
        """Every component under the path that names it: ``codec``, ``stages.coarse``, ..."""
        found: dict[str, ComponentConfig] = {}
        if self.semantic_tokenizer is not None:
            found["semantic_tokenizer"] = self.semantic_tokenizer
        found["codec"] = self.codec
        return found | {f"stages.{stage.name}": stage.lm for stage in self.stages}
