"""Registry files: which name stands for which implementation. Imports no torch.

Segue's own ``registry.yaml`` names the first-party components. A user's file has the same form; it
adds components and hooks, pins the winner of a name conflict and blocks what must not be imported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, StrictInt, field_validator

from segue.core.errors import ConfigError, PluginError
from segue.core.records import API_VERSION, KINDS, OLDEST_API_VERSION, Kind, PluginRecord
from segue.core.validation import suggestion, validate
from segue.core.yaml_files import YAML_ERRORS, parse_yaml, read_yaml

#: The source of first-party records.
FIRST_PARTY = "segue"
USER_VARIABLE = "SEGUE_REGISTRY"
USER_FILES = ("segue-registry.yaml", "registry.yaml")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
TARGET = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")
_HOOK = re.compile(r"\w+(\.\w+)*(:\w+(\.\w+)*)?")


@dataclass(frozen=True)
class Registry:
    """What one registry file says.

    Attributes:
        path: of the file.
        source: what its records carry: ``segue``, or the path of a user's file.
        records: the components it names.
        hooks: ``"module"`` or ``"module:attribute"`` of local plugins.
        pins: ``kind/name`` to the source that wins a conflict.
        blocked: distributions, ``distribution:entry point`` or ``kind/name``.
    """

    path: Path
    source: str
    records: tuple[PluginRecord, ...] = ()
    hooks: tuple[str, ...] = ()
    pins: Mapping[str, str] = field(default_factory=dict)
    blocked: tuple[str, ...] = ()


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Entry(_Strict):
    target: str
    config: str = ""
    summary: str = ""
    extra: str = ""

    @field_validator("target", "config")
    @classmethod
    def _is_a_target(cls, value: str) -> str:
        if value and not TARGET.fullmatch(value):
            raise ValueError(f"{value!r} is no target; write 'package.module:attribute'")
        return value


class _File(_Strict):
    api_version: StrictInt
    plugins: dict[Kind, dict[str, _Entry]] = {}
    hooks: tuple[str, ...] = ()
    pins: dict[str, str] = {}
    blocked: tuple[str, ...] = ()

    @field_validator("plugins")
    @classmethod
    def _names_are_names(
        cls, value: dict[Kind, dict[str, _Entry]]
    ) -> dict[Kind, dict[str, _Entry]]:
        for name in (name for entries in value.values() for name in entries):
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name; use letters, digits, '_', '.' and '-'")
        return value

    @field_validator("hooks")
    @classmethod
    def _hooks_are_modules(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for hook in value:
            if not _HOOK.fullmatch(hook):
                raise ValueError(f"{hook!r} is no module; write 'module' or 'module:attribute'")
        return value

    @field_validator("pins")
    @classmethod
    def _pins_name_kinds(cls, value: dict[str, str]) -> dict[str, str]:
        for key in value:
            _check_component(key)
        return value

    @field_validator("blocked")
    @classmethod
    def _blocked_name_kinds(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for item in value:
            if "/" in item:
                _check_component(item)
        return value


def _check_component(text: str) -> None:
    kind, slash, name = text.partition("/")
    if kind not in KINDS:
        raise ValueError(f"{text!r} starts with no kind; {suggestion(kind, KINDS)}")
    if not slash or not NAME.fullmatch(name):
        raise ValueError(f"{text!r} names no component; write '{kind}/NAME'")


def read_registry(path: Path, source: str | None = None) -> Registry:
    """Read and check one file.

    Args:
        path: of the file.
        source: what the records carry; by default the file's absolute path.

    Raises:
        ConfigError: if it cannot be read, is no YAML or says something unknown.
        PluginError: if it was written for another plugin API.
    """
    tree = read_yaml(path)
    version = tree.get("api_version")
    if isinstance(version, int) and not OLDEST_API_VERSION <= version <= API_VERSION:
        # First of all: a file for another API may hold keys that this host does not know.
        raise PluginError(
            f"{path}: api_version",
            f"needs plugin API {version}, this host speaks {API_VERSION}",
            "install a Segue that speaks it, or rewrite the file",
        )
    try:
        content = validate(_File, {k: v for k, v in tree.items() if v is not None}, "")
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


def first_party_path() -> Path:
    """Segue's own file: at the root of a checkout, or beside the installed ``segue.core``."""
    return Path(__file__).resolve().parent.parent / "registry.yaml"


def first_party_registry() -> Registry:
    """Segue's own components.

    Raises:
        PluginError: if this installation lacks the file.
    """
    path = first_party_path()
    if not path.is_file():
        raise PluginError(str(path), "Segue's own registry is missing", "install Segue anew")
    return read_registry(path, FIRST_PARTY)


def user_registry_path(search_directory: bool = True) -> Path | None:
    """The user's file: ``SEGUE_REGISTRY``, else one of ``USER_FILES`` in the working directory.

    An empty ``SEGUE_REGISTRY`` means that there is none.

    Raises:
        ConfigError: if ``SEGUE_REGISTRY`` names no file.
    """
    named = os.environ.get(USER_VARIABLE)
    if named:
        if not Path(named).is_file():
            fix = f"set {USER_VARIABLE} to a registry file, or unset it"
            raise ConfigError(USER_VARIABLE, f"there is no file {named}", fix)
        return Path(named)
    if named is not None or not search_directory:
        return None
    candidates = (Path.cwd() / name for name in USER_FILES)
    return next((path for path in candidates if path.is_file() and _is_a_users(path)), None)


def _is_a_users(path: Path) -> bool:
    """Whether a file found in the working directory is meant for Segue.

    Many programs call a file ``registry.yaml``: one without ``api_version`` is not ours.
    """
    if _is_segues_own(path):
        return False
    if path.name == USER_FILES[0]:
        return True
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, *YAML_ERRORS):
        return False
    return isinstance(tree, dict) and "api_version" in tree


def _is_segues_own(path: Path) -> bool:
    """Whether it is Segue's file, possibly that of another checkout than the installed one."""
    is_checkout = (path.parent / "core" / "registry.py").is_file()
    return is_checkout or path.resolve() == first_party_path()
