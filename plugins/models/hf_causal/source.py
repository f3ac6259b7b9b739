"""Find a backbone: a described architecture, or a pretrained text model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils.hub import is_offline_mode

from segue.core.errors import ConfigError
from segue.core.validation import suggestion
from segue.plugins.layers.hugging_face import INCIDENTAL, first_sentence, load_model, loading
from segue.plugins.models.hf_causal.backbone import Backbone
from segue.plugins.models.hf_causal.config import HfCausalOptions

#: Older names that every architecture with rotary positions still takes.
_OLDER_KEYS = ("rope_theta", "rope_scaling", "torch_dtype", "model_type")


def open_backbone(
    options: HfCausalOptions, place: str
) -> tuple[Backbone, HfCausalOptions, Tensor | None]:
    """Return the backbone that ``options`` ask for.

    Returns:
        The backbone; the options to keep, which describe what was found at ``pretrained``; the
        text embeddings ``[V, D]`` if they were read.

    Raises:
        ConfigError: if the source cannot be read, is unknown, or is not a causal language model.
    """
    rows = None
    if options.architecture is not None:
        causal = _from_architecture(options.architecture, f"{place}.architecture", check=True)
    elif options.pretrained_architecture is not None:
        found = options.pretrained_architecture
        causal = _from_architecture(found, f"{place}.pretrained_architecture", check=False)
    else:
        assert options.pretrained is not None
        causal = _from_pretrained(options.pretrained, f"{place}.pretrained")
        options = options.model_copy(update={"pretrained_architecture": _described(causal.config)})
        table = causal.get_input_embeddings()
        with torch.no_grad():  # called, not read: some architectures scale what their table holds
            rows = table(torch.arange(table.weight.shape[0], device=table.weight.device))
    source = "pretrained" if options.architecture is None else "architecture"
    alpha = 0.0 if options.lora is None else options.lora.alpha
    return Backbone(causal, f"{place}.{source}", alpha), options, rows


def _from_architecture(values: dict[str, Any], place: str, check: bool) -> PreTrainedModel:
    """Return a causal language model with random weights.

    Args:
        check: refuse keys that the architecture does not know; transformers would ignore them.
    """
    rest = {key: value for key, value in values.items() if key != "model_type"}
    model_type = values["model_type"]
    kinds = {kind.model_type: kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING}
    if model_type not in kinds:
        raise ConfigError(
            f"{place}.model_type",
            f"transformers knows no causal language model of type {model_type!r}",
            suggestion(model_type, kinds),
        )
    kind = kinds[model_type]
    if check:
        known = {*kind().to_dict(), *kind.attribute_map, *_OLDER_KEYS}
        for key in rest.keys() - known:
            problem = f"unknown key of {kind.model_type}"
            raise ConfigError(f"{place}.{key}", problem, suggestion(key, known))
    try:
        return AutoModelForCausalLM.from_config(kind(**rest))
    except Exception as error:
        problem = f"{model_type} cannot be built from it ({first_sentence(error)})"
        raise ConfigError(place, problem, "change these values") from error


def _from_pretrained(name: str, place: str) -> PreTrainedModel:
    """Return a text model with its weights in float32, from a directory or from the hub."""
    path = Path(name).expanduser()
    local = path.is_dir()
    if not local and name.startswith((".", "/", "~")):
        raise ConfigError(place, f"there is no directory {path}", "correct the path")
    where = str(path) if local else name
    safe = {"trust_remote_code": False, "local_files_only": local or is_offline_mode()}
    with loading(name, place):
        config = AutoConfig.from_pretrained(where, **safe)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ConfigError(
            place,
            f"{name!r} has type {config.model_type!r}, which is not a causal language model",
            "name one that continues text, such as a llama, qwen3, mistral or gpt2",
        )
    # The text head is not used.
    return load_model(
        AutoModelForCausalLM, where, name, place, headless=True, config=config, **safe
    )


def _described(config: PretrainedConfig) -> dict[str, Any]:
    """Return a config as JSON values, enough to build the same architecture again."""
    values = {k: v for k, v in config.to_diff_dict().items() if k not in INCIDENTAL}
    described: dict[str, Any] = json.loads(json.dumps(values))
    return described | {"model_type": config.model_type}
