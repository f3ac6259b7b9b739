"""Read YAML that people write: plain data, no key twice, errors with a line. Imports no torch."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from segue.core.errors import ConfigError
from segue.core.files import read_text

#: Every error that the YAML library raises for malformed text, tags and dates.
YAML_ERRORS = (yaml.YAMLError, ValueError, AttributeError, TypeError, RecursionError)

#: Most values of a text once its aliases are expanded: nine lines can stand for a billion values.
MOST_VALUES = 1_000_000

MOST_BYTES = 1 << 20  # of a file: the parser takes a second for each 100 kB


class _Unique:
    """Refuse a key that is written twice, where the later one would win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is there twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)  # type: ignore[misc]

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)  # type: ignore[misc]
        if len(node.value) > MOST_VALUES // 10:  # merge keys multiply as aliases do
            raise ValueError("its merge keys expand to too many values")


class _Loader(_Unique, yaml.SafeLoader):
    """Read any text; deep nesting raises RecursionError."""


class _FastLoader(_Unique, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Read in C, ten times as fast, what cannot be nested so deep that C's stack overflows."""


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        yaml.YAMLError, ValueError, AttributeError, TypeError, RecursionError: see ``YAML_ERRORS``.
    """
    # Each level of nesting takes one of these signs, or one more space a line.
    shallow = len(text) < 2**16 and sum(map(text.count, "[{-?")) < 1000
    try:
        value = yaml.load(text, _FastLoader if shallow else _Loader)
    except yaml.MarkedYAMLError:
        value = yaml.load(text, _Loader)  # its errors name the place better
    waiting, count = [value], 0
    while waiting:
        item = waiting.pop()
        count += 1
        if count > MOST_VALUES:  # also where a value holds itself
            raise ValueError(f"its aliases expand to more than {MOST_VALUES} values")
        if isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
        elif isinstance(item, int) and item.bit_length() > 64:  # Python could not even print it
            raise ValueError("it has a number of more than 64 bits")
    return value


def reason(error: Exception) -> object:
    """Return in a few words why a YAML text cannot be read."""
    return getattr(error, "problem", None) or error


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file, or raise ``ConfigError`` with the line at fault."""
    try:
        text = read_text(path, MOST_BYTES)
    except (OSError, ValueError) as error:
        raise ConfigError(str(path), f"cannot be read ({error})", "check the file") from error
    try:
        tree = parse_yaml(text)
    except YAML_ERRORS as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark is not None else str(path)
        problem = f"is not valid YAML ({reason(error)})"
        raise ConfigError(where, problem, "correct that line") from error
    if not isinstance(tree, dict):
        raise ConfigError(str(path), "holds no mapping", "write key: value lines")
    return tree
