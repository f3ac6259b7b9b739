"""Read registry files: which name stands for which implementation. Imports no torch.

Segue's own ``registry.yaml`` names the first-party components. A user's file has the same form; it
adds components and hooks, pins the winner of a name conflict and blocks what must not be imported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, StrictInt

from segue.core.discovery import PluginStatus, normalised
from segue.core.errors import ConfigError, PluginError
from segue.core.files import read_text
from segue.core.records import (
    API_VERSION,
    KINDS,
    OLDEST_API_VERSION,
    Kind,
    Name,
    OptionalTarget,
    PluginRecord,
    Target,
    form,
)
from segue.core.validation import suggestion, validate
from segue.core.yaml_files import MOST_BYTES, YAML_ERRORS, parse_yaml, read_yaml

#: The source of first-party records.
FIRST_PARTY = "segue"
USER_VARIABLE = "SEGUE_REGISTRY"
USER_FILES = ("segue-registry.yaml", "registry.yaml")


@dataclass(frozen=True)
class Registry:
    """Hold what one registry file says."""

    path: Path  # of the file
    source: str  # of its records: ``segue``, or the path of a user's file
    records: tuple[PluginRecord, ...] = ()  # the components it names
    hooks: tuple[str, ...] = ()  # ``"module"`` or ``"module:attribute"`` of local plugins
    # ``kind/name`` -> the source that wins a conflict.
    pins: Mapping[str, str] = field(default_factory=dict)
    blocked: tuple[str, ...] = ()  # distributions, ``distribution:entry point`` or ``kind/name``


def _component(text: str) -> str:
    """Accept ``kind/name``."""
    kind, _, name = text.partition("/")
    if kind not in KINDS:
        raise ValueError(f"{text!r} starts with no kind; {suggestion(kind, KINDS)}")
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"{text!r} names no component; write '{kind}/NAME'")
    return text


_Hook = Annotated[
    str, form(r"\w+(\.\w+)*(:\w+(\.\w+)*)?", "a module; write 'module' or 'module:attribute'")
]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    target: Target
    config: OptionalTarget = ""
    summary: str = ""
    extra: str = ""


class _RegistryFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    api_version: StrictInt
    plugins: dict[Kind, dict[Name, _Entry]] = {}
    hooks: tuple[_Hook, ...] = ()
    pins: dict[Annotated[str, AfterValidator(_component)], str] = {}
    blocked: tuple[
        Annotated[str, AfterValidator(lambda text: _component(text) if "/" in text else text)], ...
    ] = ()


def read_registry(path: Path, source: str | None = None) -> Registry:
    """Read and check one file; the ``source`` of its records is its absolute path by default.

    Raises:
        ConfigError: if it cannot be read, is not YAML or says something unknown.
        PluginError: if it was written for another plugin API.
    """
    tree = read_yaml(path)
    version = tree.get("api_version")
    # This comes first: a file for another API may hold keys that this host does not know.
    if isinstance(version, int) and not OLDEST_API_VERSION <= version <= API_VERSION:
        raise PluginError(
            f"{path}: api_version",
            f"needs plugin API {version}, this host speaks {API_VERSION}",
            "install a Segue that speaks it, or rewrite the file",
        )
    try:
        content = validate(_RegistryFile, {k: v for k, v in tree.items() if v is not None}, "")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.place}", error.problem, error.fix) from error
    source = str(path.resolve()) if source is None else source
    records = tuple(
        PluginRecord(
            kind, name, **entry.model_dump(), api_version=content.api_version, source=source
        )
        for kind, entries in content.plugins.items()
        for name, entry in entries.items()
    )
    return Registry(path, source, records, content.hooks, content.pins, content.blocked)


@cache  # each new host asks for it, and tests make thousands
def first_party_registry() -> Registry:
    """Read Segue's own file: at the root of a checkout, or beside the installed ``segue.core``."""
    return read_registry(Path(__file__).resolve().parent.parent / "registry.yaml", FIRST_PARTY)


def unknown_names(
    named: Mapping[str, Path], records: Iterable[PluginRecord], statuses: Sequence[PluginStatus]
) -> Iterator[PluginStatus]:
    """Yield a status for each name in `blocked` or `pins` that no plugin or component has.

    Args:
        named: each name -> the file that it stands in.
        records, statuses: all components and plugins that were found.
    """
    known = {f"{record.kind}/{record.name}" for record in records}
    known |= {name for one in statuses for name in (one.source, one.label)}
    for name, file in named.items():
        if name not in known:
            hint = suggestion(name, known)
            hint = f"; {hint}" if hint.startswith("did you mean") else ""
            error = f"blocks or pins {name}, which is not installed here{hint}"
            yield PluginStatus(str(file), name, state="unknown", error=error)


def is_source(pin: str, source: str, file: Path) -> bool:
    """Return whether a pin means a source: the same distribution or the same registry file."""
    if normalised(pin) == normalised(source):
        return True
    return Path(source).is_absolute() and (file.parent / pin).resolve() == Path(source).resolve()


def left_out(plugin: str) -> str:
    """Return what to do about a plugin that fails: one of a registry file is listed there."""
    file, _, module = plugin.rpartition(":")
    if file.endswith((".yaml", ".yml")):
        without = f"take {module} off the list `hooks` in {file}"
    else:
        without = f"write in {USER_FILES[0]} (below the line `api_version: 1`): blocked: [{plugin}]"
    return f"report it to its author, or {without}"


def user_registry_path() -> Path | None:
    """Find the user's file: ``SEGUE_REGISTRY``, else a file of ``USER_FILES`` in this directory.

    An empty ``SEGUE_REGISTRY`` means that there is none.

    Raises:
        ConfigError: if ``SEGUE_REGISTRY`` names a file that does not exist.
    """
    named = os.environ.get(USER_VARIABLE)
    if named and not Path(named).is_file():
        fix = f"set {USER_VARIABLE} to a registry file, or unset it"
        raise ConfigError(USER_VARIABLE, f"there is no file {named}", fix)
    if named is not None:
        return Path(named) if named else None
    # A checkout of Segue, this one or another, holds the first-party registry, not a user's.
    if Path("core", "registry.py").is_file():
        return None
    candidates = [Path.cwd() / name for name in USER_FILES]
    return next((path for path in candidates if path.is_file() and _is_for_segue(path)), None)


def _is_for_segue(path: Path) -> bool:
    """Return whether a ``registry.yaml`` is Segue's, which has an API version."""
    if path.name == USER_FILES[0]:
        return True
    try:
        tree = parse_yaml(read_text(path, MOST_BYTES))
    except (OSError, *YAML_ERRORS):
        return False
    return isinstance(tree, dict) and "api_version" in tree
