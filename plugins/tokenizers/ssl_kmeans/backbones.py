"""Pretrained models up to the layer that is clustered, one row of audio at a time.

Shape legend: T samples, M frames of the model, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from segue.plugins.tokenizers.common.hf_model import load_model
from segue.plugins.tokenizers.ssl_kmeans.config import (
    MEL_MODEL,
    WAVE_MODELS,
    FoundModel,
    ModelShape,
    SslKMeansOptions,
)

#: Parts that serve training, or other uses than features.
_PLAIN = {
    "add_adapter": False,
    "use_intermediate_ffn_before_adapter": False,
    "apply_spec_augment": False,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
    "layerdrop": 0.0,
}


class Backbone(nn.Module, ABC):
    """What turns a row of audio into the activations of one layer."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape

    @abstractmethod
    def forward(self, wave: Float[Tensor, "T"]) -> Float[Tensor, "M D"]:
        """``M = ceil(T / stride)`` frames.

        The model's convolutions do not pad: silence is put behind the audio for the last frame to
        be whole.
        """

    def _silence(self, samples: int) -> int:
        """Samples to put behind ``samples`` of audio."""
        frames = -(-samples // self.shape.stride)
        return (frames - 1) * self.shape.stride + self.shape.reach - samples


class WaveBackbone(Backbone):
    """wav2vec 2.0 (Baevski et al., arXiv 2006.11477) and what has its architecture.

    Args:
        model: of transformers.
        normalise: whether audio is brought to zero mean and unit variance.
    """

    def __init__(self, model: nn.Module, shape: ModelShape, normalise: bool) -> None:
        super().__init__(shape)
        self.model, self.normalise = model, normalise

    def forward(self, wave: Float[Tensor, "T"]) -> Float[Tensor, "M D"]:
        if self.normalise:
            wave = (wave - wave.mean()) / (wave.var(unbiased=False) + 1e-7).sqrt()
        padded = functional.pad(wave, (0, self._silence(wave.shape[0])))
        weight = next(self.model.parameters())
        states: Tensor = self.model(padded[None].to(weight.dtype)).last_hidden_state
        return states[0]


class MelBackbone(Backbone):
    """w2v-BERT 2.0 (Barrault et al., arXiv 2312.05187, section 3.2.1)."""

    def __init__(self, model: nn.Module, shape: ModelShape, preprocessor: dict[str, Any]) -> None:
        super().__init__(shape)
        self.model = model
        self.preprocessor = transformers.SeamlessM4TFeatureExtractor.from_dict(dict(preprocessor))

    def forward(self, wave: Float[Tensor, "T"]) -> Float[Tensor, "M D"]:
        padded = functional.pad(wave, (0, self._silence(wave.shape[0])))
        mel = self.preprocessor(
            padded.cpu().numpy(), sampling_rate=self.shape.sample_rate, return_tensors="pt"
        )["input_features"]
        states: Tensor = self.model(mel.to(next(self.model.parameters()))).last_hidden_state
        return states[0]


def open_backbone(options: SslKMeansOptions) -> tuple[Backbone, FoundModel]:
    """The model that the options name, up to their layer, and what was found at its source.

    With ``options.found`` nothing is read and weights are still to be loaded.

    Raises:
        ConfigError: if the source cannot be read or used.
    """
    shape, found = options.shape(), options.source()
    if options.of_torchaudio:
        from segue.plugins.tokenizers.ssl_kmeans.bundles import BundleBackbone

        return BundleBackbone(options, shape, found), found
    model = _from_source(options, found) if options.found is None else _built(options, found)
    if found.config.get("do_stable_layer_norm"):
        # It normalises behind its last layer, which is not always ours, and not behind others.
        model.encoder.layer_norm = nn.Identity()
    if found.config["model_type"] == MEL_MODEL:
        return MelBackbone(model, shape, found.preprocessor), found
    normalise = bool(found.preprocessor.get("do_normalize", True))
    return WaveBackbone(model, shape, normalise), found


@contextmanager
def _quiet() -> Iterator[None]:
    logging = transformers.logging
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _described(options: SslKMeansOptions, found: FoundModel) -> tuple[Any, Any]:
    """The class, and the config of its lowest layers."""
    kind = found.config["model_type"]
    name = "Wav2Vec2BertModel" if kind == MEL_MODEL else WAVE_MODELS[kind]
    model_class = getattr(transformers, name)
    values = {k: v for k, v in found.config.items() if k not in ("model_type", "auto_map")}
    values |= _PLAIN | {"num_hidden_layers": options.layer}
    return model_class, model_class.config_class.from_dict(values)


def _built(options: SslKMeansOptions, found: FoundModel) -> Any:
    model_class, config = _described(options, found)
    return model_class(config)


def _from_source(options: SslKMeansOptions, found: FoundModel) -> Any:
    """The model with its weights in float32."""
    model_class, config = _described(options, found)
    with _quiet():  # the layers above are left out, which transformers would warn of
        return load_model(model_class, options.pretrained, options.revision, config=config)
