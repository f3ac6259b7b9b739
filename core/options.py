"""Base classes of every plugin's options model. Imports no torch.

A plugin's ``config.py`` subclasses one of these; unknown keys are refused and instances are
immutable, so a config that validated stays valid.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from segue.core.spec import TokenSpec


class Options(BaseModel):
    """Options of a plugin: frozen, unknown keys refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True
    )

    #: Options that only say how a component is trained: they may change when training goes on from
    #: a checkpoint, and do not count in a fingerprint.
    of_training: ClassVar[frozenset[str]] = frozenset()

    #: Options that only fitting depends on: if they change, a checkpoint must be fitted again.
    of_fitting: ClassVar[frozenset[str]] = frozenset()

    #: Options that the component fills in when it is built, such as what it found in a pretrained
    #: model. Configs leave them empty: those of the checkpoint count.
    filled_in: ClassVar[frozenset[str]] = frozenset()

    @field_validator("*", mode="before")
    @classmethod
    def _take_no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where a number is due: pydantic would read them as 1 and 0."""
        if isinstance(value, bool):
            kind = cls.model_fields[str(info.field_name)].annotation
            kinds = {kind, *get_args(kind)}
            if kinds & {int, float} and bool not in kinds:
                raise ValueError(f"is {str(value).lower()}; it should be a number")
        return value


FINGERPRINT_DIGITS = 16


class TokenizerOptions(Options, ABC):
    """Options of a semantic tokenizer or an acoustic codec.

    ``spec()`` needs the options alone: assembly proves that parts fit before weights are loaded.
    """

    @abstractmethod
    def spec(self) -> TokenSpec:
        """Return the spec of the emitted tokens, without a fingerprint."""

    def identity(self) -> dict[str, Any]:
        """Return the options that determine what a token means, as JSON values.

        All but those ``of_training``. Replace the name of a file of weights by its hash.
        """
        return self.model_dump(mode="json", exclude=set(self.of_training))


def options_digest(name: str, options: TokenizerOptions) -> hashlib._Hash:
    """Begin a tokenizer's fingerprint: hash its registered name and options."""
    text = json.dumps([name, options.identity()], sort_keys=True)
    return hashlib.sha256(text.encode())


class DetectorOptions(Options):
    """Options of a detector of generated audio.

    Attributes:
        sample_rate: of the audio it takes, in Hz.
        window_seconds: length of audio that one judgement is made for.
    """

    sample_rate: int = Field(default=16000, ge=1000, le=768_000)
    window_seconds: float = Field(default=2.0, gt=0.0, le=60.0)


class Sampling(Options):
    """Settings for drawing a stage's tokens.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: keep only the k most likely tokens.
        top_p: keep the smallest set of tokens whose probabilities reach p (nucleus sampling,
            Holtzman et al., arXiv 1904.09751).
        guidance: classifier-free guidance (Ho and Salimans, arXiv 2207.12598): logits are moved
            away from those without the given slices, by this factor; 1 turns it off. Only for a
            model trained with ``condition_dropout``.
        prompt_guidance: the same by the prompt (Sanchez et al., arXiv 2306.17806): away from what
            the given slices alone lead to, or the last second if there are none.
        iterations: passes of each level, for a model that fills masks; further levels take one.
        repeats: a token that stands at so many of the last 16 frames is drawn anew at temperature
            1, so that a low temperature does not stay in a pause (Chen et al., arXiv 2406.05370).
            This and ``prompt_guidance`` are for models that draw frame after frame.
        candidates: continuations drawn at a time; that which keeps all that is new most like the
            prompt stays (``Tokenizer.likeness``).
        candidate_seconds: length of a candidate; as long as a window allows if left out.
    """

    temperature: float = Field(default=1.0, ge=0.0, le=10.0)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    guidance: float = Field(default=1.0, ge=0.0, le=20.0)
    prompt_guidance: float = Field(default=1.0, ge=0.0, le=20.0)
    iterations: tuple[Annotated[int, Field(ge=1, le=1000)], ...] | None = None
    repeats: int | None = Field(default=None, ge=1, le=16)
    candidates: int = Field(default=1, ge=1, le=64)
    candidate_seconds: float | None = Field(default=None, gt=0.0, le=3600.0)


class GuidedConfig(Options):
    """Make a stage draw by itself what the model that it begins from draws with guidance.

    Attributes:
        guidance: as in ``Sampling``.
        prompt_guidance: as in ``Sampling``.
        temperature: divides the logits that are compared; near that of ``Sampling``.
        prompt_seconds: shortest and longest prompt; what follows is learnt from.
        drawn: share of steps that learn from what the model itself draws after the prompts.
    """

    guidance: float = Field(default=1.0, ge=0.0, le=20.0)
    prompt_guidance: float = Field(default=1.0, ge=0.0, le=20.0)
    temperature: float = Field(default=1.0, gt=0.0, le=10.0)
    prompt_seconds: tuple[Annotated[float, Field(ge=0.0)], Annotated[float, Field(ge=0.0)]] = (1, 4)
    drawn: float = Field(default=0.5, ge=0.0, le=1.0)

    @field_validator("prompt_seconds")
    @classmethod
    def _shortest_first(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError(f"is {list(value)}; give the shorter one first")
        return value


class Decoding(Options):
    """Settings of a stage's computation while it generates: they change speed and memory only.

    Attributes:
        weights: number format of the weights. ``stored`` leaves them as they are; ``bfloat16`` and
            ``float16`` are for GPUs; ``int8`` keeps codes and one scale per 64 weights, so that a
            CPU reads a quarter of the memory per token.
        backend: how a step is computed. ``torch`` works everywhere; ``native`` is a kernel for
            CPUs, compiled once by the C compiler it finds; ``graph`` replays a CUDA graph;
            ``compile`` uses ``torch.compile``. ``auto`` takes ``graph`` on a CUDA device,
            ``native`` on a CPU with a compiler, else ``torch``.
    """

    weights: Literal["stored", "bfloat16", "float16", "int8"] = "stored"
    backend: Literal["auto", "torch", "native", "graph", "compile"] = "auto"

    @property
    def halves(self) -> bool:
        """Return whether parameters are replaced by numbers of half the size."""
        return self.weights in ("bfloat16", "float16")
