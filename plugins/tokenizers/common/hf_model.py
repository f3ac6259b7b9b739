"""Models of Hugging Face transformers with their pretrained weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from segue.core.errors import ConfigError
from segue.plugins.tokenizers.common.hf_source import weights_directory


def load_model(
    model_class: type[PreTrainedModel], pretrained: str, revision: str | None, **further: Any
) -> PreTrainedModel:
    """The model in float32, with every weight that it needs.

    Args:
        model_class: its class in transformers.
        pretrained: a directory, or a name on the hub.
        revision: of the hub's repository.
        further: arguments of ``from_pretrained``.

    Raises:
        ConfigError: if it cannot be loaded, or lacks weights.
    """
    directory = weights_directory(pretrained, revision)
    try:
        model, report = model_class.from_pretrained(
            directory,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **further,
        )
    except Exception as error:
        told, _, _ = " ".join(str(error).split()).partition(". ")
        raise ConfigError(
            "pretrained",
            f"{pretrained!r} cannot be loaded ({type(error).__name__}: {told[:200]})",
            "restore the directory, or name another",
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ConfigError(
            "pretrained",
            f"{pretrained!r} holds no weights for {missing[0]} and {len(missing) - 1} others",
            "name a complete model: these parts would start from random weights",
        )
    return model
