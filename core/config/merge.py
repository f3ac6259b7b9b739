"""Layers of config: files that extend one another, then ``--set``. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from segue.core.errors import ConfigError
from segue.core.yaml_files import YAML_ERRORS, parse_yaml

Tree = dict[str, Any]

#: ``{name: coarse, drop: true}`` takes an item of a named list out.
DROP = "drop"


def merge(base: Any, over: Any) -> Any:
    """``over`` on top of ``base``.

    Mappings merge key by key; lists whose items have a ``name`` merge item by item (new names are
    appended, ``drop: true`` takes one out); anything else is replaced. A component whose ``use``
    changes starts afresh: the options and the checkpoint of the old plugin mean nothing to the new
    one.
    """
    if isinstance(base, Mapping) and isinstance(over, Mapping):
        if "use" in base and over.get("use", base["use"]) != base["use"]:
            base = {key: value for key, value in base.items() if key == "training"}
        keys = [*base, *(key for key in over if key not in base)]
        return {key: merge(base[key], over[key]) if key in base and key in over
                else over.get(key, base.get(key)) for key in keys}  # fmt: skip
    if _is_named(base) and _is_named(over):
        items = {item["name"]: item for item in base}
        for item in over:
            items[item["name"]] = merge(items.get(item["name"], {}), item)
        return [item for item in items.values() if item.get(DROP) is not True]
    return over


def _is_named(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, Mapping) and isinstance(item.get("name"), str) for item in value)
    )


def assignment(text: str, base: Mapping[str, Any]) -> Tree:
    """The layer that ``--set path=value`` stands for.

    The value is read as YAML. An item of a named list is addressed by its name:
    ``stages.coarse.sampling.temperature=0.9``.

    Raises:
        ConfigError: if there is no ``=``, the value is no YAML, or a named item does not exist.
    """
    path, equals, raw = text.partition("=")
    keys = [key for key in path.strip().split(".") if key]
    if not equals or not keys:
        raise ConfigError(f"--set {text}", "is no assignment", "write --set path.to.key=value")
    try:
        value = parse_yaml(raw)
    except YAML_ERRORS as error:
        raise ConfigError(f"--set {text}", "the value is no YAML", "quote the value") from error
    return dict(_nest(keys, value, base, text))


def _nest(keys: Sequence[str], value: Any, base: Any, text: str) -> Tree:
    key, rest = keys[0], keys[1:]
    if not rest:
        return {key: value}
    below = base.get(key) if isinstance(base, Mapping) else None
    if not _is_named(below):
        return {key: _nest(rest, value, below, text)}
    assert isinstance(below, list)
    names = [item["name"] for item in below]
    if rest[0] not in names:
        raise ConfigError(
            f"--set {text}", f"{key} has no {rest[0]!r}", f"choose one of {', '.join(names)}"
        )
    item = below[names.index(rest[0])]
    inner = _nest(rest[1:], value, item, text) if rest[1:] else value
    if not isinstance(inner, Mapping):
        raise ConfigError(
            f"--set {text}", f"{key}.{rest[0]} is a mapping", "set one of the keys inside it"
        )
    return {key: [{"name": rest[0], **inner}]}


def leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """Every leaf under its dotted path; items of named lists under their name."""
    if isinstance(tree, Mapping) and tree:
        found: dict[str, Any] = {}
        for key, value in tree.items():
            found |= leaves(value, f"{path}.{key}" if path else str(key))
        return found
    if _is_named(tree):
        found = {}
        for item in tree:
            found |= leaves(item, f"{path}.{item['name']}")
        return found
    return {path: tree}
