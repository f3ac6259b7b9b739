"""Options that the codecs of Hugging Face share. Imports neither torch nor transformers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from pydantic import Field

from segue.core.errors import ConfigError
from segue.core.options import Options, TokenizerOptions
from segue.core.spec import TokenSpec
from segue.plugins.tokenizers.common.hf_source import read_config, weights_hash

#: What a config calls its architecture, and the codec that runs it.
CODECS = {"encodec": "encodec.v1", "dac": "dac.v1", "mimi": "mimi.v1"}


@dataclass(frozen=True)
class CodecShape:
    """What of a codec's architecture its tokens show.

    Attributes:
        sample_rate: samples per second.
        frame_size: samples per frame.
        num_levels: quantizers that the model has.
        usual_levels: of these, how many are used by default.
        codebook_size: V.
    """

    sample_rate: int
    frame_size: int
    num_levels: int
    usual_levels: int
    codebook_size: int


class FoundCodec(Options):
    """What was found at the source.

    Attributes:
        config: the architecture, as ``config.json`` describes it.
        weights: SHA-256 of the file of weights.
        tensors: hash of the tensors that were made of it.
    """

    config: dict[str, Any]
    weights: str
    tensors: str


class HfCodecOptions(TokenizerOptions):
    """Options of ``encodec``, ``dac`` and ``mimi``.

    Attributes:
        pretrained: a directory that ``save_pretrained`` wrote, or a model of huggingface.co.
        revision: branch, tag or commit on huggingface.co; None is its main branch.
        num_levels: quantizers to use, from the first on; None: as many as is usual.
        found: written by the codec itself, not for configs. With it the codec is built without
            reading anything at ``pretrained``, since its weights come from the checkpoint that
            says so.
    """

    model_type: ClassVar[str]

    pretrained: str = Field(min_length=1)
    revision: str | None = Field(default=None, min_length=1)
    num_levels: int | None = Field(default=None, ge=1)
    found: FoundCodec | None = None

    @classmethod
    @abstractmethod
    def shape(cls, values: Mapping[str, Any]) -> CodecShape:
        """The shape that a ``config.json`` describes; what it leaves out has its default.

        Raises:
            ConfigError: if it is of a variant that cannot be used.
        """

    def architecture(self) -> dict[str, Any]:
        """What ``config.json`` says, as it was found or as it is at the source.

        Raises:
            ConfigError: if it cannot be had, or describes another kind of codec.
        """
        if self.found is not None:
            return self.found.config
        values = read_config(self.pretrained, self.revision)
        found = values.get("model_type")
        if found != self.model_type:
            raise ConfigError(
                "pretrained",
                f"{self.pretrained!r} is a model of type {found!r}, not {self.model_type!r}",
                f"use {CODECS[found]}" if found in CODECS else f"name a {self.model_type} model",
            )
        return values

    def spec(self) -> TokenSpec:
        shape = self.shape(self.architecture())
        levels = shape.usual_levels if self.num_levels is None else self.num_levels
        if levels > shape.num_levels:
            raise ConfigError(
                "num_levels",
                f"is {levels}, but {self.pretrained!r} has {shape.num_levels} quantizers",
                f"use 1 to {shape.num_levels}",
            )
        rate = Fraction(shape.sample_rate, shape.frame_size)
        return TokenSpec(shape.sample_rate, rate, levels, shape.codebook_size)

    def identity(self) -> dict[str, Any]:
        config = self.architecture()
        weights = self.found.weights if self.found else weights_hash(self.pretrained, self.revision)
        levels = self.num_levels or self.shape(config).usual_levels
        return {"config": config, "weights": weights, "num_levels": levels}


def require_mono(channels: int, fix: str) -> None:
    """Refuse a codec of several channels."""
    if channels != 1:
        raise ConfigError("pretrained", f"encodes {channels} channels; Segue's audio is mono", fix)
