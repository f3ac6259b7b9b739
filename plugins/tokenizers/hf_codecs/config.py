"""Options of EnCodec, DAC and Mimi. Imports neither torch nor transformers."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from pydantic import Field

from segue.core.errors import ConfigError
from segue.core.options import Options, TokenizerOptions
from segue.core.spec import TokenSpec
from segue.plugins.layers.hugging_face import Source

#: The codec that runs a model, by the ``model_type`` in its config.
CODECS = {"encodec": "encodec.v1", "dac": "dac.v1", "mimi": "mimi.v1"}


@dataclass(frozen=True)
class CodecShape:
    """Describe the tokens of a codec's architecture."""

    sample_rate: int
    frame_size: int
    num_levels: int  # quantizers that the model has
    usual_levels: int  # quantizers to use by default
    codebook_size: int


class FoundCodec(Options):
    """Record what was found at the source, so that a saved codec is opened without it.

    Attributes:
        config: the content of ``config.json``.
        weights: SHA-256 of the file of weights.
        tensors: hash of the tensors that were made of it.
    """

    config: dict[str, Any]
    weights: str
    tensors: str


class HfCodecOptions(TokenizerOptions):
    """Configure ``encodec``, ``dac`` and ``mimi``.

    Attributes:
        pretrained: a directory that ``save_pretrained`` wrote, or a model of huggingface.co such as
            ``facebook/encodec_24khz``, ``descript/dac_16khz`` or ``kyutai/mimi``.
        revision: branch, tag or commit on huggingface.co; None is its main branch.
        num_levels: quantizers to use, from the first on. By default EnCodec uses at most 6 kbit/s,
            DAC all of its quantizers, Mimi at most 8.
        found: written by the codec itself, not for configs. With it the codec is built without
            reading ``pretrained``, since its weights come from its checkpoint.
    """

    model_type: ClassVar[str]
    filled_in = frozenset({"num_levels", "found"})

    pretrained: str = Field(min_length=1)
    revision: str | None = Field(default=None, min_length=1)
    num_levels: int | None = Field(default=None, ge=1)
    found: FoundCodec | None = None

    @classmethod
    @abstractmethod
    def shape(cls, values: Mapping[str, Any]) -> CodecShape:
        """Return the shape that a ``config.json`` describes; missing keys have their defaults.

        Raises:
            ConfigError: if this variant of the model cannot be used.
        """

    @property
    def source(self) -> Source:
        return Source(self.pretrained, self.revision)

    def architecture(self) -> dict[str, Any]:
        """Return ``config.json``, as recorded or at the source, or raise ``ConfigError``."""
        if self.found is not None:
            return self.found.config
        values = self.source.read()
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
        levels = self.num_levels or shape.usual_levels
        if levels > shape.num_levels:
            raise ConfigError(
                "num_levels",
                f"is {levels}, but {self.pretrained!r} has {shape.num_levels} quantizers",
                f"use 1 to {shape.num_levels}",
            )
        rate = Fraction(shape.sample_rate, shape.frame_size)
        return TokenSpec(shape.sample_rate, rate, levels, shape.codebook_size)

    def identity(self) -> dict[str, Any]:
        """Identify the model by its content, not by the place it was found."""
        config = self.architecture()
        weights = self.found.weights if self.found else self.source.weights_hash()
        levels = self.num_levels or self.shape(config).usual_levels
        return {"config": config, "weights": weights, "num_levels": levels}


class EncodecOptions(HfCodecOptions):
    """Configure ``encodec``; see ``HfCodecOptions``."""

    model_type: ClassVar[str] = "encodec"
    usual_bitrate: ClassVar[int] = 6000  # bit/s, the middle of those it was trained for

    @classmethod
    def shape(cls, values: Mapping[str, Any]) -> CodecShape:
        fix = "use a model for mono audio, such as facebook/encodec_24khz"
        _require_mono(values, fix)
        if values.get("normalize", False) or values.get("chunk_length_s") is not None:
            raise ConfigError(
                "pretrained", "needs scales of chunks to decode, which are not tokens", fix
            )
        rate = values.get("sampling_rate", 24_000)
        size = math.prod(values.get("upsampling_ratios", (8, 5, 4, 2)))
        codes = values.get("codebook_size", 1024)
        per_level = math.ceil(rate / size) * math.ceil(math.log2(codes))  # bit/s, as it counts them
        levels = int(1000 * values.get("target_bandwidths", (24.0,))[-1] // per_level)
        usual = max(1, min(levels, cls.usual_bitrate // per_level))
        return CodecShape(rate, size, levels, usual, codes)


class DacOptions(HfCodecOptions):
    """Configure ``dac``; see ``HfCodecOptions``."""

    model_type: ClassVar[str] = "dac"

    @classmethod
    def shape(cls, values: Mapping[str, Any]) -> CodecShape:
        rate = values.get("sampling_rate", 16_000)
        size = math.prod(values.get("downsampling_ratios", (2, 4, 8, 8)))
        levels = values.get("n_codebooks", 9)
        return CodecShape(rate, size, levels, levels, values.get("codebook_size", 1024))


class MimiOptions(HfCodecOptions):
    """Configure ``mimi``; see ``HfCodecOptions``."""

    model_type: ClassVar[str] = "mimi"
    usual_levels: ClassVar[int] = 8  # 1.1 kbit/s, as in Moshi

    @classmethod
    def shape(cls, values: Mapping[str, Any]) -> CodecShape:
        _require_mono(values, "use kyutai/mimi")
        for half in ("encoder", "decoder"):
            if values.get(f"{half}_config", {}) is None:
                raise ConfigError("pretrained", f"was saved without its {half}", "save it all")
        rate = values.get("sampling_rate", 24_000)
        hop = math.prod(values.get("upsampling_ratios") or (8, 6, 5, 4))
        # Older configs name the frame rate, later ones halve that of the convolutions.
        frame_rate = values.get("frame_rate") or rate / (2 * hop)
        size = hop * int(math.ceil(rate / hop) / frame_rate)
        levels = values.get("num_quantizers", 32)
        codes = values.get("codebook_size", 2048)
        return CodecShape(rate, size, levels, min(levels, cls.usual_levels), codes)


def _require_mono(values: Mapping[str, Any], fix: str) -> None:
    channels = values.get("audio_channels", 1)
    if channels != 1:
        raise ConfigError("pretrained", f"encodes {channels} channels; Segue's audio is mono", fix)
