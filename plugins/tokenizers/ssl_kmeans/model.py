"""Semantic tokens from a pretrained self-supervised model.

As in GSLM (Lakhotia et al., arXiv 2102.01192) and AudioLM, one layer's activations are normalised
and clustered.

Shape legend: B batch, T samples, M frames of the model, N frames (tokens), D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torchaudio.models import wav2vec2_model, wavlm_model

from segue.core.errors import ConfigError
from segue.plugins.layers.hugging_face import Source, first_sentence, load_model
from segue.plugins.tokenizers.common.kmeans import WindowedTokenizer
from segue.plugins.tokenizers.ssl_kmeans.config import (
    MEL_MODEL,
    WAVE_MODELS,
    FoundModel,
    ModelShape,
    SslKMeansOptions,
)

_BUNDLE_MODELS = {"Wav2Vec2": wav2vec2_model, "WavLM": wavlm_model}
# Without the parts that serve training, or other uses than features.
_FEATURES_ONLY = {
    "add_adapter": False,
    "use_intermediate_ffn_before_adapter": False,
    "apply_spec_augment": False,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
    "layerdrop": 0.0,
}


class SslKMeansTokenizer(WindowedTokenizer):
    """Cluster the activations of a model that stays as it is.

    Rows are encoded one by one: models whose first layer normalises over time (wav2vec 2.0 and
    HuBERT base) are disturbed by padding, whatever mask they are given.

    Args:
        config: options; those that are kept record what was found at the source.
    """

    config: SslKMeansOptions

    def __init__(self, config: SslKMeansOptions) -> None:
        shape, found = config.shape(), config.source()
        super().__init__(config.model_copy(update={"found": found}), shape.width)
        self.backbone = _backbone(config, shape, found).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> SslKMeansTokenizer:
        """Set the mode, but keep the model inside in eval mode, without dropout and masks."""
        super().train(mode)
        self.backbone.eval()
        return self

    def row_features(self, wave: Float[Tensor, "T"]) -> Float[Tensor, "N D"]:
        """Return the mean of each token's frames; the last token may have fewer."""
        frames: Tensor = self.backbone(wave)
        if self.config.pool == 1:
            return frames
        missing = -frames.shape[0] % self.config.pool
        groups = functional.pad(frames, (0, 0, 0, missing)).unflatten(0, (-1, self.config.pool))
        counts = torch.full((groups.shape[0], 1), self.config.pool).to(frames)
        counts[-1] -= missing
        return groups.sum(1) / counts


class WaveBackbone(nn.Module):
    """Run wav2vec 2.0 (Baevski et al., arXiv 2006.11477), or a model of its architecture.

    Args:
        model: of transformers, up to the clustered layer.
        normalise: bring audio to zero mean and unit variance first.
    """

    def __init__(self, model: nn.Module, shape: ModelShape, normalise: bool) -> None:
        super().__init__()
        self.model, self.shape, self.normalise = model, shape, normalise

    def forward(self, wave: Float[Tensor, "T"]) -> Float[Tensor, "M D"]:
        """Return ``ceil(T / stride)`` frames of one row."""
        if self.normalise:
            wave = self._normalised(wave)
        # The model's convolutions do not pad: silence at the end completes the last frame.
        frames = -(-wave.shape[0] // self.shape.stride)
        needed = (frames - 1) * self.shape.stride + self.shape.reach
        # Older releases of transformers draw which layers to drop, though none is in evaluation.
        with torch.random.fork_rng(devices=[]):
            return self._activations(functional.pad(wave, (0, needed - wave.shape[0])))

    def _normalised(self, wave: Float[Tensor, "T"]) -> Float[Tensor, "T"]:
        return (wave - wave.mean()) / (wave.var(unbiased=False) + 1e-7).sqrt()

    def _activations(self, padded: Float[Tensor, "T"]) -> Float[Tensor, "M D"]:
        weight = next(self.model.parameters())
        return self.model(padded[None].to(weight.dtype)).last_hidden_state[0]


class MelBackbone(WaveBackbone):
    """Run w2v-BERT 2.0 (Barrault et al., arXiv 2312.05187, section 3.2.1)."""

    def __init__(self, model: nn.Module, shape: ModelShape, preprocessor: dict[str, Any]) -> None:
        super().__init__(model, shape, normalise=False)
        self.preprocessor = transformers.SeamlessM4TFeatureExtractor.from_dict(dict(preprocessor))

    def _activations(self, padded: Float[Tensor, "T"]) -> Float[Tensor, "M D"]:
        mel = self.preprocessor(
            padded.cpu().numpy(), sampling_rate=self.shape.sample_rate, return_tensors="pt"
        )["input_features"]
        return self.model(mel.to(next(self.model.parameters()))).last_hidden_state[0]


class BundleBackbone(WaveBackbone):
    """Run a model of torchaudio."""

    def _normalised(self, wave: Float[Tensor, "T"]) -> Float[Tensor, "T"]:
        return functional.layer_norm(wave, wave.shape)

    def _activations(self, padded: Float[Tensor, "T"]) -> Float[Tensor, "M D"]:
        weight = next(self.model.parameters())
        states, _ = self.model.extract_features(padded[None].to(weight.dtype))  # type: ignore[operator]
        return states[-1][0]


def _backbone(options: SslKMeansOptions, shape: ModelShape, found: FoundModel) -> WaveBackbone:
    """Build the model up to the clustered layer.

    Where the options record what was found, weights are still to be loaded from a checkpoint.
    """
    if options.of_torchaudio:
        model = _bundle_model(options, found)
        return BundleBackbone(model, shape, bool(found.preprocessor["do_normalize"]))
    kind = found.config["model_type"]
    name = "Wav2Vec2BertModel" if kind == MEL_MODEL else WAVE_MODELS[kind]
    model_class = getattr(transformers, name)
    values = {k: v for k, v in found.config.items() if k not in ("model_type", "auto_map")}
    values |= _FEATURES_ONLY | {"num_hidden_layers": options.layer}
    config = model_class.config_class.from_dict(values)
    if options.found is not None:
        model = model_class(config)
    else:
        directory = Source(options.pretrained, options.revision).weights_directory()
        with _quiet():  # transformers would warn of the layers above, which are left out
            model = load_model(
                model_class, directory, options.pretrained, config=config, local_files_only=True
            )
    if found.config.get("do_stable_layer_norm"):
        # It normalises after its last layer, which may not be ours, and not after others.
        model.encoder.layer_norm = nn.Identity()
    if kind == MEL_MODEL:
        return MelBackbone(model, shape, found.preprocessor)
    return WaveBackbone(model, shape, bool(found.preprocessor.get("do_normalize", True)))


def _bundle_model(options: SslKMeansOptions, found: FoundModel) -> nn.Module:
    described = found.config["torchaudio"]
    params = described["params"] | {"encoder_num_layers": options.layer, "aux_num_out": None}
    model: nn.Module = _BUNDLE_MODELS[described["type"]](**params)
    if options.found is None:
        assert options.state is not None
        path = Path(options.state).expanduser()
        try:
            weights = {k.removeprefix("model."): v for k, v in load_file(path).items()}
            model.load_state_dict({k: weights[k] for k in model.state_dict()})
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            raise ConfigError(
                "state",
                f"{path} does not hold this model's weights ({first_sentence(error)})",
                "write it with safetensors.torch.save_file(bundle.get_model().state_dict(), path)",
            ) from error
    return model


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
