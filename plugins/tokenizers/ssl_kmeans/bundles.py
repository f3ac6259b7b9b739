"""Describe torchaudio's bundles as transformers would, without fetching their weights."""

from __future__ import annotations

import json
from typing import Any

import torchaudio

from segue.core.errors import ConfigError
from segue.core.validation import suggestion


def describe(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a bundle in the keys of transformers, or raise ``ConfigError`` if there is none."""
    pipelines = torchaudio.pipelines
    names = [n for n in pipelines.__all__ if hasattr(getattr(pipelines, n), "_model_type")]
    if name not in names:
        raise ConfigError(
            "pretrained", f"torchaudio has no bundle {name!r}", suggestion(name, names)
        )
    bundle = getattr(pipelines, name)
    layers = bundle._params["extractor_conv_layer_config"]
    config = {
        "model_type": "wav2vec2",
        "conv_kernel": [kernel for _, kernel, _ in layers],
        "conv_stride": [stride for _, _, stride in layers],
        "num_hidden_layers": bundle._params["encoder_num_layers"],
        "hidden_size": bundle._params["encoder_embed_dim"],
        "torchaudio": {"type": bundle._model_type, "params": dict(bundle._params)},
    }
    preprocessor = {"sampling_rate": bundle.sample_rate, "do_normalize": bundle._normalize_waveform}
    # As a saved config holds it, with lists for tuples: fingerprints must be the same.
    return json.loads(json.dumps(config)), preprocessor
