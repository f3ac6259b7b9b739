"""Read YAML that people write: plain data, no key twice, errors with a line. Imports no torch."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from segue.core.errors import ConfigError

#: What the YAML library raises for malformed text, tags and dates.
YAML_ERRORS = (yaml.YAMLError, ValueError, AttributeError, TypeError, RecursionError)


class _Loader(yaml.SafeLoader):
    """Refuses a key written twice, where the later one would win without a word, and aliases:
    a value that holds itself could not be walked."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is there twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        yaml.YAMLError, ValueError, AttributeError, TypeError, RecursionError: see ``YAML_ERRORS``.
    """
    value = yaml.load(text, _Loader)
    _check_finite(value, ())
    return value


def _check_finite(value: Any, above: tuple[int, ...]) -> None:
    if id(value) in above:
        raise ValueError("a value holds itself")
    if isinstance(value, dict):
        for item in value.values():
            _check_finite(item, (*above, id(value)))
    elif isinstance(value, list):
        for item in value:
            _check_finite(item, (*above, id(value)))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        ConfigError: with the file, and the line where there is one.
    """
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"cannot be read ({error})", "check the file") from error
    except YAML_ERRORS as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark is not None else str(path)
        problem = getattr(error, "problem", None) or error
        raise ConfigError(where, f"is no valid YAML ({problem})", "mend that line") from error
    if not isinstance(tree, dict):
        raise ConfigError(str(path), "holds no mapping", "write key: value lines")
    return tree
