"""Read a pipeline config: a domain's name, a YAML file or a directory. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segue.core.config.merge import Tree, assignment, leaves, merge
from segue.core.config.schema import ComponentConfig, PipelineConfig
from segue.core.domain import DEFAULT_VARIANT, PIPELINE_FILE, Domain
from segue.core.errors import ConfigError
from segue.core.plugins import PluginHost
from segue.core.records import Kind
from segue.core.validation import validate
from segue.core.yaml_files import read_yaml


@dataclass(frozen=True)
class LoadedConfig:
    """A validated config and, for each value, the file or option that set it."""

    config: PipelineConfig
    origins: dict[str, str]


def load_config(
    source: str | Path, host: PluginHost, overrides: Sequence[str] = ()
) -> LoadedConfig:
    """Read, merge and validate a pipeline config and every plugin's options.

    Args:
        source: ``speech``, ``speech/three_stage``, a YAML file, or a directory that holds
            ``pipeline.yaml``.
        host: knows the domains and the plugins' options.
        overrides: ``path.to.key=value``, applied in order.

    Raises:
        ConfigError: with the full path of what is wrong.
        PluginError: if a plugin that is named cannot be used.
    """
    tree: Tree = {}
    origins: dict[str, str] = {}
    for origin, layer in _file_layers(source, host):
        tree = merge(tree, layer)
        origins = _still_set(origins | dict.fromkeys(leaves(layer), origin), tree)
    for text in overrides:
        layer = assignment(text, tree)
        _anchor_checkpoints(layer, Path.cwd())
        tree = merge(tree, layer)
        origins = _still_set(origins | dict.fromkeys(leaves(layer), f"--set {text}"), tree)
    config = resolve_options(validate(PipelineConfig, tree, ""), host)
    return LoadedConfig(config, origins)


def _still_set(origins: dict[str, str], tree: Tree) -> dict[str, str]:
    """The origins of values that later layers left in place."""
    present = leaves(tree)
    return {path: origin for path, origin in origins.items() if path in present}


def kind_of(part: str) -> Kind:
    """The kind of plugin that a part's path asks for."""
    if part.startswith("stages."):
        return "stage_lm"
    return "semantic_tokenizer" if part == "semantic_tokenizer" else "codec"


def resolve_options(config: PipelineConfig, host: PluginHost) -> PipelineConfig:
    """The config with every plugin's options validated and completed with their defaults.

    A part with a checkpoint keeps only the options it names: the checkpoint holds the rest.
    """
    completed = {part: _complete(part, ref, host) for part, ref in config.parts.items()}
    return replace_parts(config, completed)


def replace_parts(config: PipelineConfig, parts: dict[str, ComponentConfig]) -> PipelineConfig:
    """The config with some components replaced, by path."""
    stages = tuple(
        stage.model_copy(update={"lm": parts.get(f"stages.{stage.name}", stage.lm)})
        for stage in config.stages
    )
    update: dict[str, Any] = {"stages": stages}
    update |= {name: parts[name] for name in ("semantic_tokenizer", "codec") if name in parts}
    return config.model_copy(update=update)


def _complete(part: str, ref: ComponentConfig, host: PluginHost) -> ComponentConfig:
    place = f"{part}.lm.options" if part.startswith("stages.") else f"{part}.options"
    if ref.checkpoint is not None and not ref.options:
        return ref  # a model may have options that must be given, and its checkpoint has them
    options = host.options(kind_of(part), ref.use, ref.options, place)
    if ref.checkpoint is not None:
        return ref
    return ref.model_copy(update={"options": options.model_dump(mode="json")})


def _file_layers(source: str | Path, host: PluginHost) -> list[tuple[str, Tree]]:
    """The layers of a file and of all it extends, the base first."""
    layers: list[tuple[str, Tree]] = []
    seen: list[Path] = []
    path: Path | None = find_config(source, host)
    while path is not None:
        path = path.resolve()
        if path in seen:
            chain = " → ".join(p.name for p in [*seen, path])
            raise ConfigError(str(path), f"extends itself ({chain})", "break the circle")
        seen.append(path)
        tree = read_yaml(path)
        base = tree.pop("extends", None)
        _anchor_checkpoints(tree, path.parent)
        layers.insert(0, (str(path), tree))
        path = None if base is None else find_config(str(base), host, path.parent)
    return layers


def find_config(source: str | Path, host: PluginHost, relative_to: Path = Path()) -> Path:
    """The YAML file that a name, file or directory stands for.

    Raises:
        ConfigError: if there is none; lists the domains that exist.
    """
    path = relative_to / source
    if path.is_dir() and (path / PIPELINE_FILE).is_file():
        return path / PIPELINE_FILE
    if path.is_file():
        return path
    name, _, variant = str(source).partition("/")
    known = sorted({record.name for record in host.records("domain")})
    if name in known:
        return find_domain(name, host).config_path(variant or DEFAULT_VARIANT)
    if path.is_dir():
        raise ConfigError(str(path), f"holds no {PIPELINE_FILE}", "name a saved pipeline")
    raise ConfigError(
        str(source),
        "is no domain, config file or pipeline directory",
        f"name one of the domains {', '.join(known)}, or an existing path",
    )


def find_domain(name: str, host: PluginHost) -> Domain:
    """The domain plugin of that name."""
    domain = host.load(host.find("domain", name, "domain"), "domain")
    if not isinstance(domain, Domain):
        raise ConfigError(f"domain {name}", "is no segue.core.domain.Domain", "mend the plugin")
    return domain


def _anchor_checkpoints(tree: Any, directory: Path) -> None:
    """Make checkpoint paths, which are relative to their file, absolute."""
    if isinstance(tree, dict):
        for key in ("checkpoint", "start_from"):
            if isinstance(tree.get(key), str):
                tree[key] = str((directory / tree[key]).resolve())
        for value in tree.values():
            _anchor_checkpoints(value, directory)
    elif isinstance(tree, list):
        for item in tree:
            _anchor_checkpoints(item, directory)
