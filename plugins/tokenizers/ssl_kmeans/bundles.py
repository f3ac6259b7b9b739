"""Models of torchaudio's bundles, with weights from a safetensors file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torchaudio
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from torchaudio.models import wav2vec2_model, wavlm_model

from segue.core.errors import ConfigError
from segue.core.validation import suggestion
from segue.plugins.tokenizers.ssl_kmeans.backbones import Backbone
from segue.plugins.tokenizers.ssl_kmeans.config import FoundModel, ModelShape, SslKMeansOptions

_FACTORIES = {"Wav2Vec2": wav2vec2_model, "WavLM": wavlm_model}


def describe(name: str) -> FoundModel:
    """A bundle's architecture; its weights are not fetched.

    Raises:
        ConfigError: if there is no such bundle.
    """
    pipelines = torchaudio.pipelines
    names = [n for n in pipelines.__all__ if hasattr(getattr(pipelines, n), "_model_type")]
    if name not in names:
        raise ConfigError(
            "pretrained", f"torchaudio has no bundle {name!r}", suggestion(name, names)
        )
    bundle = getattr(pipelines, name)
    params = dict(bundle._params)
    layers = params["extractor_conv_layer_config"]
    config = {
        # Under the names of transformers, so that the shape is told in one way.
        "model_type": "wav2vec2",
        "conv_kernel": [kernel for _, kernel, _ in layers],
        "conv_stride": [stride for _, _, stride in layers],
        "num_hidden_layers": params["encoder_num_layers"],
        "hidden_size": params["encoder_embed_dim"],
        "torchaudio": {"type": bundle._model_type, "params": params},
    }
    prepared = {"sampling_rate": bundle.sample_rate, "do_normalize": bundle._normalize_waveform}
    found = FoundModel(config=config, preprocessor=prepared)
    return FoundModel.model_validate_json(found.model_dump_json())  # lists for tuples, as if saved


class BundleBackbone(Backbone):
    """A model of torchaudio."""

    def __init__(self, options: SslKMeansOptions, shape: ModelShape, found: FoundModel) -> None:
        super().__init__(shape)
        self.layer = options.layer
        self.normalise = bool(found.preprocessor["do_normalize"])
        described = found.config["torchaudio"]
        params = described["params"] | {"encoder_num_layers": options.layer, "aux_num_out": None}
        self.model = _FACTORIES[described["type"]](**params)
        if options.found is None:
            assert options.state is not None
            self._load(Path(options.state).expanduser())

    def _load(self, path: Path) -> None:
        """Weights as ``bundle.get_model().state_dict()`` names them."""
        wanted = self.model.state_dict()
        try:
            found = {k.removeprefix("model."): v for k, v in load_file(path).items()}
            self.model.load_state_dict({k: found[k] for k in wanted})
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            told = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            raise ConfigError(
                "state",
                f"{path} does not hold this model's weights ({told})",
                "write it with safetensors.torch.save_file(bundle.get_model().state_dict(), path)",
            ) from error

    def forward(self, wave: Float[Tensor, "T"]) -> Float[Tensor, "M D"]:
        if self.normalise:
            wave = functional.layer_norm(wave, wave.shape)
        padded: Any = functional.pad(wave, (0, self._silence(wave.shape[0])))
        weight = next(self.model.parameters())
        states, _ = self.model.extract_features(padded[None].to(weight.dtype))
        last: Tensor = states[self.layer - 1]
        return last[0]
