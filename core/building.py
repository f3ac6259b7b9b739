"""Find a pipeline's files and build its parts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from segue.core.assembly import PartPlan
from segue.core.checkpoint import load_state
from segue.core.config.load import find_domain
from segue.core.config.schema import PipelineConfig
from segue.core.domain import PIPELINE_FILE
from segue.core.errors import AssemblyError, CheckpointError, ConfigError
from segue.core.files import write_text
from segue.core.interfaces import Component, Tokenizer
from segue.core.plugins import PluginHost


def checked_device(device: torch.device | str) -> torch.device:
    """The device, if this machine can compute on it.

    Raises:
        ConfigError: if it cannot.
    """
    try:
        with warnings.catch_warnings():  # of names that PyTorch gave up
            warnings.simplefilter("ignore")
            torch.ones(1, device=device).add(1).cpu()
    except (RuntimeError, AssertionError, ImportError, ValueError, TypeError) as error:
        problem = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
        raise ConfigError(f"device {device}", f"cannot be used ({problem})", "use cpu") from error
    return torch.device(device)


def build_part(
    part: PartPlan, arguments: Sequence[object], host: PluginHost, allow_untrained: bool
) -> Component:
    """Build one component and load its weights.

    Raises:
        AssemblyError: if it must be trained or fitted, its checkpoint is of none that was, and
            ``allow_untrained`` is False.
    """
    component = host.create(part.kind, part.use, part.options, *arguments, place=part.part)
    assert isinstance(component, Component)
    if part.checkpoint is not None:
        load_state(component, part.checkpoint, part.use)
        if not (component.is_fitted or allow_untrained):
            raise AssemblyError(
                part.part,
                f"{part.checkpoint} was trained but not fitted",
                f"run `segue train {part.part}` to its end: fitting comes last",
            )
    elif component.needs != "none" and not allow_untrained:
        raise AssemblyError(
            part.part,
            f"{part.use} must be trained and the config names no checkpoint",
            f"train it (`segue train {part.part}`) or name one: --set {part.part}.checkpoint=DIR",
        )
    if isinstance(component, Tokenizer):
        component.seal(part.use)
    return component.eval()


def pretrained_path(source: str | Path, host: PluginHost) -> Path:
    """The pipeline file of a domain's shipped weights or of a directory.

    Args:
        source: ``speech``, ``speech/three_stage``, a directory, or a file.

    Raises:
        CheckpointError: if there is none.
    """
    path = Path(source)
    if (path / PIPELINE_FILE).is_file():
        return path / PIPELINE_FILE
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    name, _, variant = str(source).partition("/")
    names = sorted({record.name for record in host.records("domain")})
    if name not in names:
        raise CheckpointError(
            str(source),
            "is no pipeline directory and no domain",
            f"name a directory with {PIPELINE_FILE}, or one of {', '.join(names)}",
        )
    domain = find_domain(name, host)
    found = domain.pretrained_file(variant)
    if found is not None:
        return found
    others = ", ".join(domain.pretrained_names)
    known = not variant or variant in domain.variants
    raise CheckpointError(
        str(source),
        f"ships no weights; {others} do" if others else "this domain ships no weights",
        f"train them: segue train all --domain {source}" if known else f"name {others or name}",
    )


def write_pipeline_file(config: PipelineConfig, path: Path) -> None:
    """Write a config as YAML; checkpoint paths are kept as they are."""
    data = config.model_dump(mode="json", exclude_none=True)
    write_text(path, yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
