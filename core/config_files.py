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

from segue.core.assembly import resolve_part
from segue.core.config import PipelineConfig, replace_parts
from segue.core.domain import BASELINE, PIPELINE_FILE, Domain
from segue.core.errors import ConfigError, SegueError
from segue.core.files import write_text
from segue.core.plugins import PluginHost
from segue.core.validation import validate
from segue.core.yaml_files import YAML_ERRORS, parse_yaml, read_yaml, reason

Tree = dict[str, Any]

DROP = "drop"  # ``{name: coarse, drop: true}`` takes an item out of a named list


@dataclass(frozen=True)
class LoadedConfig:
    """A validated config and, for each value, the file or option that set it."""

    config: PipelineConfig
    origins: dict[str, str]


def load_config(
    source: str | Path, host: PluginHost, overrides: Sequence[str] = (), *, anew: bool = False
) -> LoadedConfig:
    """Read, merge and validate a pipeline config and every plugin's options.

    Args:
        source: ``speech``, ``speech/three_stage``, a YAML file, or a directory that holds
            ``pipeline.yaml``.
        overrides: ``path.to.key=value``, applied in order.
        anew: for training. Parts of a pipeline that ships with its domain keep their options and
            lose their weights; descriptions of weights that others trained are left out.

    Raises:
        ConfigError: with the full path of the wrong value.
        CheckpointError: if the description of a part's weights cannot be read.
        PluginError: if a named plugin cannot be used.
    """
    tree: Tree = {}
    origins: dict[str, str] = {}
    files = _files(source, host)
    for file in files:
        layer = _without_weights(file, host) if anew else file.tree
        tree, origins = _put_over(tree, origins, layer, str(file.path))
    for text in overrides:
        layer = assignment(text, tree)
        _anchor_checkpoints(layer, Path.cwd())  # as a shell resolves paths on its command line
        tree, origins = _put_over(tree, origins, layer, f"--set {text}")
    try:
        config = complete_options(validate(PipelineConfig, tree, ""), host)
    except SegueError as error:
        base = files[0].name
        domain = base.partition("/")[0]
        plain = f"{domain}/{BASELINE}"
        if files[0].shipped and len(files) > 1 and plain in find_domain(domain, host).names:
            error.fix += (
                f" (`extends: {base}` is the pipeline with weights; the plain one is {plain})"
            )
        raise
    return LoadedConfig(config, origins)


def _put_over(
    tree: Tree, origins: dict[str, str], layer: Tree, origin: str
) -> tuple[Tree, dict[str, str]]:
    tree = merge(tree, layer)
    present = leaves(tree)  # a layer may also take values out
    known = origins | dict.fromkeys(leaves(layer), origin)
    return tree, {path: found for path, found in known.items() if path in present}


def complete_options(config: PipelineConfig, host: PluginHost) -> PipelineConfig:
    """Validate every plugin's options and fill in all values: those of its checkpoint, or defaults.

    Raises:
        AssemblyError: if a part's checkpoint is of another plugin or of other options.
        CheckpointError: if its description cannot be read.
        ConfigError, PluginError: if the plugin or its options cannot be used.
    """
    completed = {}
    for name, slot in config.slots.items():
        part = resolve_part(slot, host)
        completed[name] = slot.component.model_copy(
            update={
                "options": part.options.model_dump(mode="json"),
                "checkpoint": None if part.checkpoint is None else str(part.checkpoint),
            }
        )
    return replace_parts(config, completed)


def write_pipeline_file(config: PipelineConfig, path: Path) -> None:
    """Write a config as YAML; checkpoint paths are kept as they are."""
    data = config.model_dump(mode="json", exclude_none=True)
    write_text(path, yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


# --- files ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    """One file of a config, without what it extends."""

    name: str  # as the user, or the file that extends this one, wrote it
    path: Path  # absolute
    tree: Tree
    named: bool  # found by the name of a domain

    @property
    def saved(self) -> bool:
        """Return whether it lies beside weights."""
        return (self.path.parent / PIPELINE_FILE).is_file()

    @property
    def shipped(self) -> bool:
        """Return whether it is a pipeline that ships with its domain and was asked for by name."""
        return self.named and self.saved


def _files(source: str | Path, host: PluginHost) -> list[_File]:
    """Return a file and all that it extends, the base first."""
    files: list[_File] = []
    name: str | None = str(source)
    while name is not None:
        relative_to = files[0].path.parent if files else Path()
        path, named = _located(name, host, relative_to)
        # The Hub's cache links each file to a store without folders: paths count from the link.
        path = path.parent.resolve() / path.name
        if path in (file.path for file in files):
            chain = " → ".join(p.name for p in (*(file.path for file in reversed(files)), path))
            raise ConfigError(str(path), f"extends itself ({chain})", "break the circle")
        tree = read_yaml(path)
        base = tree.pop("extends", None)
        _anchor_checkpoints(tree, path.parent)
        files.insert(0, _File(name, path, tree, named))
        name = None if base is None else str(base)
    return files


def _without_weights(file: _File, host: PluginHost) -> Tree:
    """Return a file's content without trained weights, to train the pipeline again."""
    tree = file.tree
    if file.shipped:
        config = load_config(file.path, host).config
        bare = {
            name: part.model_copy(update={"checkpoint": None})
            for name, part in config.parts.items()
        }
        tree = replace_parts(config, bare).model_dump(mode="json", exclude_none=True)
    if file.named or file.saved:
        tree = {key: value for key, value in tree.items() if key != "description"}
    return tree


def find_config(source: str | Path, host: PluginHost) -> Path:
    """Return the YAML file that a name, file or directory means, or raise ``ConfigError``."""
    return _located(str(source), host, Path())[0]


def _located(source: str, host: PluginHost, relative_to: Path) -> tuple[Path, bool]:
    """Return the YAML file, and whether it was found by the name of a domain."""
    path = relative_to / source
    if path.is_dir() and (path / PIPELINE_FILE).is_file():
        return path / PIPELINE_FILE, False
    if path.is_file():
        return path, False
    name, _, variant = source.partition("/")
    known = domain_names(host)
    if name in known:
        return find_domain(name, host).config_path(variant), True
    if path.is_dir():
        fix = f"name {inner}" if (inner := path / "pipeline").is_dir() else "name a saved pipeline"
        raise ConfigError(str(path), f"holds no {PIPELINE_FILE}", fix)
    raise ConfigError(
        str(path),
        "is not a domain, config file or pipeline directory",
        f"name one of the domains {', '.join(known)}, an existing path, or a repository of the Hub "
        "(org/name)",
    )


def domain_names(host: PluginHost) -> list[str]:
    """Return the names of all domains, sorted."""
    return sorted({record.name for record in host.records("domain")})


def find_domain(name: str, host: PluginHost) -> Domain:
    """Return the domain plugin of that name, or raise ``PluginError``."""
    return host.load(host.find("domain", name, "domain"), "domain")


def _anchor_checkpoints(tree: Any, directory: Path) -> None:
    """Make checkpoint paths, which are relative to their file, absolute."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(value, dict | list):
            _anchor_checkpoints(value, directory)
        elif key in ("checkpoint", "start_from") and isinstance(value, str):
            try:
                path = (directory / value).resolve()
                path.exists()  # it raises what every later call would
            # It is too long, holds a zero byte, or its links go in a circle.
            except (OSError, ValueError, RuntimeError) as error:
                shown = repr(value if len(value) <= 60 else f"{value[:57]}...")
                why = getattr(error, "strerror", None) or error
                problem = f"{key} {shown} cannot be a path ({why})"
                raise ConfigError(str(directory), problem, "name a directory of weights") from error
            tree[key] = str(path)


# --- layers -----------------------------------------------------------------------------------


def merge(base: Any, over: Any) -> Any:
    """Return ``base`` with ``over`` put on top.

    Mappings merge key by key; lists whose items have a ``name`` merge item by item (new names are
    appended, ``drop: true`` takes one out); anything else is replaced.
    """
    if isinstance(base, Mapping) and isinstance(over, Mapping):
        if "use" in base and over.get("use", base["use"]) != base["use"]:
            # The options and the checkpoint of another plugin mean nothing to the new one.
            base = {key: value for key, value in _without_start(base).items() if key == "training"}
        elif base.get("checkpoint") and over.get("checkpoint") not in (None, base["checkpoint"]):
            # Options that other weights were trained with mean nothing either.
            base = {key: value for key, value in base.items() if key != "options"}
        if over.get("checkpoint") is not None:
            base = _without_start(base)
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


def _without_start(part: Mapping[str, Any]) -> Tree:
    """Return a part without the weights that its training was to start from or to learn from."""
    training = part.get("training")
    if not isinstance(training, Mapping):
        return dict(part)
    kept = {k: v for k, v in training.items() if k not in ("start_from", "guided")}
    return {**part, "training": kept}


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
        problem = f"the value is not YAML ({reason(error)})"
        raise ConfigError(f"--set {text}", problem, "correct or quote it") from error
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
