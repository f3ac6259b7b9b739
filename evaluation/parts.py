"""Build one tokenizer of a config alone: it can be measured before any stage is trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from segue.core.assembly import plan_part
from segue.core.building import build_part, checked_device, pretrained_path
from segue.core.component_manifest import MANIFEST
from segue.core.config.load import load_config
from segue.core.config.schema import ComponentConfig, PipelineConfig
from segue.core.errors import CheckpointError, ConfigError
from segue.core.interfaces import Tokenizer
from segue.core.manager import PluginHost
from segue.core.training_directory import newest_checkpoint


def config_of(source: str, host: PluginHost, overrides: Sequence[str] = ()) -> PipelineConfig:
    """The config of a domain's shipped weights if it has any, else of a domain, file or directory.

    Raises:
        ConfigError: if there is none, or something in it is wrong.
    """
    try:
        return load_config(pretrained_path(source, host), host, overrides).config
    except CheckpointError:
        return load_config(source, host, overrides).config


def load_tokenizer(
    config: PipelineConfig, part: str, host: PluginHost, device: torch.device | str = "cpu"
) -> Tokenizer:
    """A tokenizer with its weights; neither the stages nor the other tokenizer are looked at.

    Args:
        part: ``codec`` or ``semantic_tokenizer``. Its checkpoint may also be the folder that
            `segue train` made for it: then the newest one in there is taken.

    Raises:
        ConfigError: if the config has no such part.
        SegueError: if it cannot be built or has no weights.
    """
    ref = config.parts.get(part)
    if ref is None:
        raise ConfigError(part, "this pipeline has none", "name another pipeline, or another part")
    device = checked_device(device)
    built = build_part(plan_part(part, _newest(ref), host), (), host, allow_untrained=False)
    assert isinstance(built, Tokenizer)
    return built.to(device)


def _newest(ref: ComponentConfig) -> ComponentConfig:
    if ref.checkpoint is None or (Path(ref.checkpoint) / MANIFEST).is_file():
        return ref
    newest = newest_checkpoint(Path(ref.checkpoint))
    return ref if newest is None else ref.model_copy(update={"checkpoint": str(newest)})
