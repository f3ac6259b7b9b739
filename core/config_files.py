"""Read and write pipeline configs: layers of YAML files, then ``--set``. Imports no torch.

A config may extend another. The base is read first, later layers are merged over it, values on the
command line win, and at the end every plugin's options are validated and completed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from segue.core.checkpoint_files import made_by
from segue.core.config import ComponentConfig, PipelineConfig, Slot, replace_parts
from segue.core.domain import DEFAULT_VARIANT, PIPELINE_FILE, Domain
from segue.core.errors import CheckpointError, ConfigError
from segue.core.files import write_text
from segue.core.plugins import PluginHost
from segue.core.validation import validate
from segue.core.yaml_files import YAML_ERRORS, parse_yaml, read_yaml

Tree = dict[str, Any]

DROP = "drop"  # ``{name: coarse, drop: true}`` takes an item out of a named list


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
        ConfigError: with the full path of the wrong value.
        PluginError: if a named plugin cannot be used.
    """
    tree: Tree = {}
    origins: dict[str, str] = {}
    for path, layer in _file_layers(source, host):
        tree, origins = _put_over(tree, origins, layer, path)
    for text in overrides:
        layer = assignment(text, tree)
        _anchor_checkpoints(layer, Path.cwd())  # as a shell resolves paths on its command line
        tree, origins = _put_over(tree, origins, layer, f"--set {text}")
    return LoadedConfig(complete_options(validate(PipelineConfig, tree, ""), host), origins)


def _put_over(
    tree: Tree, origins: dict[str, str], layer: Tree, origin: str
) -> tuple[Tree, dict[str, str]]:
    tree = merge(tree, layer)
    present = leaves(tree)  # a layer may also take values out
    known = origins | dict.fromkeys(leaves(layer), origin)
    return tree, {path: found for path, found in known.items() if path in present}


def complete_options(config: PipelineConfig, host: PluginHost) -> PipelineConfig:
    """Validate every plugin's options and fill in their defaults.

    A part with a checkpoint keeps only the options it names: the checkpoint holds the rest.
    """
    slots = config.slots.items()
    return replace_parts(config, {name: _completed(slot, host) for name, slot in slots})


def _completed(slot: Slot, host: PluginHost) -> ComponentConfig:
    component = slot.component
    if component.checkpoint is not None and not component.options:
        return component  # required options may be missing here: the checkpoint has them
    saved_with = made_by(component.checkpoint)
    host.find(slot.kind, component.use, f"{slot.place}.use", saved_with)
    options = host.options(slot.kind, component.use, component.options, f"{slot.place}.options")
    if component.checkpoint is not None:
        return component
    return component.model_copy(update={"options": options.model_dump(mode="json")})


def write_pipeline_file(config: PipelineConfig, path: Path) -> None:
    """Write a config as YAML; checkpoint paths are kept as they are."""
    data = config.model_dump(mode="json", exclude_none=True)
    write_text(path, yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


# --- files ------------------------------------------------------------------------------------


def _file_layers(source: str | Path, host: PluginHost) -> list[tuple[str, Tree]]:
    """Return the layers of a file and of all it extends, the base first."""
    layers: list[tuple[str, Tree]] = []
    seen: list[Path] = []
    path: Path | None = find_config(source, host)
    while path is not None:
        # The Hub's cache links each file to a store without folders: paths count from the link.
        path = path.parent.resolve() / path.name
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
    """Return the YAML file that a name, file or directory stands for.

    Raises:
        ConfigError: if there is none; lists the domains that exist.
    """
    path = relative_to / source
    if path.is_dir() and (path / PIPELINE_FILE).is_file():
        return path / PIPELINE_FILE
    if path.is_file():
        return path
    name, _, variant = str(source).partition("/")
    known = domain_names(host)
    if name in known:
        return find_domain(name, host).config_path(variant or DEFAULT_VARIANT)
    if path.is_dir():
        raise ConfigError(str(path), f"holds no {PIPELINE_FILE}", "name a saved pipeline")
    raise ConfigError(
        str(source),
        "is not a domain, config file or pipeline directory",
        f"name one of the domains {', '.join(known)}, or an existing path",
    )


def pretrained_path(source: str | Path, host: PluginHost) -> Path:
    """Return the pipeline file of a domain's shipped weights, or of a directory.

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
    names = domain_names(host)
    if name not in names:
        raise CheckpointError(
            str(source),
            "is not a pipeline directory or a domain",
            f"name a directory with {PIPELINE_FILE}, a repository of the Hub (org/name), or one of"
            f" {', '.join(names)}",
        )
    domain = find_domain(name, host)
    found = domain.pretrained_file(variant)
    if found is not None:
        return found
    shipped = ", ".join(domain.pretrained_names)
    is_config = not variant or variant in domain.variants
    raise CheckpointError(
        str(source),
        f"ships no weights; {shipped} do" if shipped else "ships no weights",
        f"train them: segue train all --domain {source}" if is_config else f"use {shipped or name}",
    )


def domain_names(host: PluginHost) -> list[str]:
    """Return the names of all domains, sorted."""
    return sorted({record.name for record in host.records("domain")})


def find_domain(name: str, host: PluginHost) -> Domain:
    """Return the domain plugin of that name.

    Raises:
        PluginError: if there is none, or it cannot be used.
    """
    domain: Domain = host.load(host.find("domain", name, "domain"), "domain")
    return domain


def _anchor_checkpoints(tree: Any, directory: Path) -> None:
    """Make checkpoint paths, which are relative to their file, absolute."""
    if isinstance(tree, dict):
        for key in ("checkpoint", "start_from"):
            if isinstance(tree.get(key), str):
                tree[key] = str((directory / tree[key]).resolve())
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    for child in children:
        _anchor_checkpoints(child, directory)


# --- layers -----------------------------------------------------------------------------------


def merge(base: Any, over: Any) -> Any:
    """Return ``base`` with ``over`` put on top.

    Mappings merge key by key; lists whose items have a ``name`` merge item by item (new names are
    appended, ``drop: true`` takes one out); anything else is replaced.
    """
    if isinstance(base, Mapping) and isinstance(over, Mapping):
        if "use" in base and over.get("use", base["use"]) != base["use"]:
            # The options and the checkpoint of another plugin mean nothing to the new one.
            base = {key: value for key, value in base.items() if key == "training"}
        merged = dict(base)
        for key, value in over.items():
            merged[key] = merge(base[key], value) if key in base else value
        return merged
    if _is_named(base) and _is_named(over):
        items = {item["name"]: item for item in base}
        for item in over:
            items[item["name"]] = merge(items.get(item["name"], {}), item)
        return [item for item in items.values() if item.get(DROP) is not True]
    return over


def _is_named(value: Any) -> bool:
    """Return whether a value is a list of mappings that all have a ``name``."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, Mapping) and isinstance(item.get("name"), str) for item in value)
    )


def assignment(text: str, base: Mapping[str, Any]) -> Tree:
    """Return the layer that ``--set path=value`` stands for.

    The value is read as YAML. An item of a named list is addressed by its name:
    ``stages.coarse.sampling.temperature=0.9``.

    Raises:
        ConfigError: if there is no ``=``, the value is not YAML, or a named item does not exist.
    """
    path, equals, raw = text.partition("=")
    keys = [key for key in path.strip().split(".") if key]
    if not equals or not keys:
        raise ConfigError(f"--set {text}", "is not an assignment", "write --set path.to.key=value")
    try:
        value = parse_yaml(raw)
    except YAML_ERRORS as error:
        raise ConfigError(f"--set {text}", "the value is not YAML", "quote the value") from error
    return _nested(keys, value, base, text)


def _nested(keys: Sequence[str], value: Any, base: Any, text: str) -> Tree:
    key, rest = keys[0], keys[1:]
    if not rest:
        return {key: value}
    below = base.get(key) if isinstance(base, Mapping) else None
    if not _is_named(below):
        return {key: _nested(rest, value, below, text)}
    assert isinstance(below, list)
    items = {item["name"]: item for item in below}
    if rest[0] not in items:
        raise ConfigError(
            f"--set {text}", f"{key} has no {rest[0]!r}", f"choose one of {', '.join(items)}"
        )
    inner = _nested(rest[1:], value, items[rest[0]], text) if rest[1:] else value
    if not isinstance(inner, Mapping):
        raise ConfigError(
            f"--set {text}", f"{key}.{rest[0]} is a mapping", "set one of the keys inside it"
        )
    return {key: [{"name": rest[0], **inner}]}


def leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """Return every leaf under its dotted path; items of named lists under their name."""
    if isinstance(tree, Mapping) and tree:
        children = [(f"{path}.{key}" if path else str(key), value) for key, value in tree.items()]
    elif _is_named(tree):
        children = [(f"{path}.{item['name']}", item) for item in tree]
    else:
        return {path: tree}
    found: dict[str, Any] = {}
    for below, value in children:
        found |= leaves(value, below)
    return found
