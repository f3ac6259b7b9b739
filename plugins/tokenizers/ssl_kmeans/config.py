"""Options of the tokenizer over pretrained models. Imports neither torch nor transformers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from pydantic import Field, model_validator

from segue.core.errors import ConfigError
from segue.core.options import Options
from segue.core.spec import TokenSpec
from segue.plugins.layers.hugging_face import Source
from segue.plugins.tokenizers.common.options import WindowOptions

PREPROCESSOR = "preprocessor_config.json"
TORCHAUDIO = "torchaudio:"
#: Types of models that read samples, and the class of transformers that runs each.
WAVE_MODELS = {
    "wav2vec2": "Wav2Vec2Model",
    "hubert": "HubertModel",
    "wavlm": "WavLMModel",
    "unispeech-sat": "UniSpeechSatModel",
    "data2vec-audio": "Data2VecAudioModel",
    "mert_model": "HubertModel",
}
#: The type that reads log-mel spectra.
MEL_MODEL = "wav2vec2-bert"
# Defaults of keys that transformers leaves out of a config.
_STRIDES, _KERNELS = (5, 2, 2, 2, 2, 2, 2), (10, 3, 3, 3, 3, 2, 2)
_WAVE_SIZE = {"num_hidden_layers": 12, "hidden_size": 768}
_MEL_SIZE = {"num_hidden_layers": 24, "hidden_size": 1024}
# Options that MERT's own code adds to HuBERT, with the values at which it is a HuBERT.
_MERT_EXTRAS = {"feature_extractor_cqt": False, "deepnorm": False, "attention_relax": -1.0}


@dataclass(frozen=True)
class ModelShape:
    """Describe the frames of a model."""

    sample_rate: int
    stride: int  # samples from one frame to the next
    reach: int  # samples that one frame is made of
    num_layers: int  # of the whole model
    width: int


class FoundModel(Options):
    """Record what was found at the source.

    Attributes:
        config: the architecture, as ``config.json`` or torchaudio describes it.
        preprocessor: the content of ``preprocessor_config.json``.
    """

    config: dict[str, Any]
    preprocessor: dict[str, Any]

    def shape(self) -> ModelShape:
        """Return the shape of the model, or raise ``ConfigError`` if it cannot be used."""
        kind = self.config.get("model_type")
        size = (_MEL_SIZE if kind == MEL_MODEL else _WAVE_SIZE) | self.config
        layers, width = int(size["num_hidden_layers"]), int(size["hidden_size"])
        rate = self.preprocessor.get("sampling_rate", 16_000)
        if kind == MEL_MODEL:
            hop, stride = rate // 100, self.preprocessor.get("stride", 2)
            return ModelShape(rate, hop * stride, hop * (stride - 1) + rate // 40, layers, width)
        if kind not in WAVE_MODELS:
            known = ", ".join((*WAVE_MODELS, MEL_MODEL))
            raise ConfigError(
                "pretrained", f"is a model of type {kind!r}", f"name one of type {known}"
            )
        for key, value in _MERT_EXTRAS.items() if kind == "mert_model" else ():
            if self.config.get(key, value) != value:
                raise ConfigError(
                    "pretrained",
                    f"is a MERT with {key} {self.config[key]!r}, which only its own code can run",
                    "name one without, such as m-a-p/MERT-v1-95M",
                )
        stride, reach = 1, 1
        strides, kernels = self.config.get("conv_stride"), self.config.get("conv_kernel")
        for step, kernel in zip(strides or _STRIDES, kernels or _KERNELS, strict=True):
            reach += (kernel - 1) * stride
            stride *= step
        return ModelShape(rate, stride, reach, layers, width)


class SslKMeansOptions(WindowOptions):
    """Configure ``ssl_kmeans``.

    Attributes:
        pretrained: a directory that ``save_pretrained`` wrote, feature extractor included, or a
            model of huggingface.co, or ``torchaudio:`` and the name of a bundle, such as
            ``torchaudio:HUBERT_BASE``.
        revision: branch, tag or commit on huggingface.co; None is its main branch.
        state: for a bundle of torchaudio, the safetensors file with its weights.
        layer: whose activations are clustered, 1 being the lowest.
        pool: frames of the model that one token stands for: their mean is clustered.
        found: written by the tokenizer itself, not for configs. With it the tokenizer is built
            without reading ``pretrained``, since its weights come from its checkpoint.
    """

    filled_in = frozenset({"found"})

    pretrained: str = Field(min_length=1)
    revision: str | None = Field(default=None, min_length=1)
    state: str | None = Field(default=None, min_length=1)
    layer: int = Field(ge=1)
    pool: int = Field(default=1, ge=1)
    window_seconds: float = Field(default=30.0, ge=1.0, le=600.0)
    found: FoundModel | None = None

    @model_validator(mode="after")
    def _check_values(self) -> SslKMeansOptions:
        if (self.state is not None) != self.of_torchaudio:
            raise ValueError(
                "a bundle of torchaudio needs state, the safetensors file with its weights"
                if self.of_torchaudio
                else f"state is for a bundle of torchaudio, not for {self.pretrained!r}"
            )
        return self

    @property
    def of_torchaudio(self) -> bool:
        return self.pretrained.startswith(TORCHAUDIO)

    def source(self) -> FoundModel:
        """Return the description of the model, recorded or read, or raise ``ConfigError``."""
        if self.found is not None:
            return self.found
        if self.of_torchaudio:
            from segue.plugins.tokenizers.ssl_kmeans.bundles import describe

            config, preprocessor = describe(self.pretrained.removeprefix(TORCHAUDIO))
            return FoundModel(config=config, preprocessor=preprocessor)
        source = Source(self.pretrained, self.revision)
        return FoundModel(config=source.read(), preprocessor=source.read(PREPROCESSOR))

    def shape(self) -> ModelShape:
        """Return the shape of the model, or raise ``ConfigError`` if it cannot be used."""
        shape = self.source().shape()
        if self.layer > shape.num_layers:
            raise ConfigError(
                "layer",
                f"is {self.layer}, but {self.pretrained!r} has {shape.num_layers} layers",
                f"choose one from 1 to {shape.num_layers}",
            )
        return shape

    def spec(self) -> TokenSpec:
        shape = self.shape()
        rate = Fraction(shape.sample_rate, shape.stride * self.pool)
        return TokenSpec(shape.sample_rate, rate, 1, self.num_clusters)

    def identity(self) -> dict[str, Any]:
        """Identify the model by its description, not its place; the tensors add its weights."""
        chosen = {"num_clusters", "layer", "pool", "window_seconds", "margin_seconds"}
        return self.model_dump(mode="json", include=chosen) | self.source().model_dump(mode="json")

    def frames(self, seconds: float) -> int:
        """Return how many whole tokens fit into a time, at least one."""
        return max(1, math.floor(seconds * self.spec().frame_rate))
