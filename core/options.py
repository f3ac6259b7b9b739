"""Base classes of every plugin's options model. Imports no torch.

A plugin's ``config.py`` subclasses one of these; unknown keys are refused and instances are
immutable, so a config that validated stays valid.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from segue.core.spec import TokenSpec


class Options(BaseModel):
    """Options of a plugin: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    #: Options that only say how a component is trained: they may be others where training goes on
    #: from a checkpoint.
    of_training: ClassVar[frozenset[str]] = frozenset()

    #: Options that only fitting depends on: with others, a checkpoint is one to be fitted anew.
    of_fitting: ClassVar[frozenset[str]] = frozenset()


FINGERPRINT_DIGITS = 16


class TokenizerOptions(Options, ABC):
    """Options of a semantic tokenizer or an acoustic codec.

    ``spec()`` must be answerable from the options alone, so that assembly can prove that parts
    fit before any weight is loaded.
    """

    # What is ``of_training`` says nothing of what tokens mean: it is no part of the fingerprint.

    @abstractmethod
    def spec(self) -> TokenSpec:
        """The emitted tokens' spec, without a fingerprint."""

    def identity(self) -> dict[str, Any]:
        """What of the options determines what a token means, as JSON holds it.

        By default all but those ``of_training``. Options that name a place where weights are read
        leave the place out and put in a hash of what lies there.
        """
        return self.model_dump(mode="json", exclude=set(self.of_training))


def options_digest(name: str, options: TokenizerOptions) -> hashlib._Hash:
    """The part of a tokenizer's fingerprint that its registered name and options determine."""
    text = json.dumps([name, options.identity()], sort_keys=True)
    return hashlib.sha256(text.encode())


class DetectorOptions(Options):
    """Options of a detector of generated audio.

    Attributes:
        sample_rate: of the audio it is given, Hz.
        window_seconds: of audio that one judgement is made for.
    """

    sample_rate: int = Field(default=16000, ge=1000, le=768_000)
    window_seconds: float = Field(default=2.0, gt=0.0, le=60.0)


class Sampling(Options):
    """How one stage draws its tokens.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: keep only the k most likely tokens.
        top_p: keep the smallest set of tokens whose probabilities reach p (nucleus sampling,
            Holtzman et al., arXiv 1904.09751).
        guidance: classifier-free guidance (Ho and Salimans, arXiv 2207.12598): logits are moved
            away from those without the given slices, by this factor; 1 is none. Only for a model
            trained with ``condition_dropout``.
        iterations: for a model that fills masks: forward passes of each level; levels that are not
            named take one.
    """

    temperature: float = Field(default=1.0, ge=0.0, le=10.0)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    guidance: float = Field(default=1.0, ge=0.0, le=20.0)
    iterations: tuple[PositiveInt, ...] | None = None


class Decoding(Options):
    """How a stage computes while it generates: changes speed and memory, not what is asked of it.

    Attributes:
        weights: number format of the weights. ``stored`` leaves them as they are; ``bfloat16`` and
            ``float16`` are for GPUs; ``int8`` keeps a code and one scale per 64 weights, which on a
            CPU reads a quarter of the memory per token.
        backend: what computes a step. ``torch`` works everywhere; ``native`` is a kernel for CPUs,
            compiled once by the C compiler that it finds; ``graph`` replays a CUDA graph;
            ``compile`` goes through ``torch.compile``. ``auto`` takes ``graph`` on a CUDA device,
            ``native`` on a CPU with a compiler, else ``torch``.
    """

    weights: Literal["stored", "bfloat16", "float16", "int8"] = "stored"
    backend: Literal["auto", "torch", "native", "graph", "compile"] = "auto"

    @property
    def halves(self) -> bool:
        """Whether parameters are replaced by ones of half the size."""
        return self.weights in ("bfloat16", "float16")
