"""Base classes of every plugin's options model. Imports no torch.

A plugin's ``config.py`` subclasses one of these; unknown keys are refused and instances are
immutable, so a config that validated stays valid.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod

from pydantic import BaseModel, ConfigDict, Field

from segue.core.spec import TokenSpec


class Options(BaseModel):
    """Options of a plugin: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


FINGERPRINT_DIGITS = 16


def options_digest(name: str, options: Options) -> hashlib._Hash:
    """The part of a tokenizer's fingerprint that its registered name and options determine."""
    text = json.dumps([name, options.model_dump(mode="json")], sort_keys=True)
    return hashlib.sha256(text.encode())


class TokenizerOptions(Options, ABC):
    """Options of a semantic tokenizer or an acoustic codec.

    ``spec()`` must be answerable from the options alone, so that assembly can prove that parts
    fit before any weight is loaded.
    """

    @abstractmethod
    def spec(self) -> TokenSpec:
        """The emitted tokens' spec, without a fingerprint."""


class Sampling(Options):
    """How one stage draws its tokens.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: keep only the k most likely tokens.
        top_p: keep the smallest set of tokens whose probabilities reach p (nucleus sampling,
            Holtzman et al., arXiv 1904.09751).
    """

    temperature: float = Field(default=1.0, ge=0.0, le=10.0)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
