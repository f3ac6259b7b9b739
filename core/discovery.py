"""Find what installed distributions offer, without importing any of it. Imports no torch."""

from __future__ import annotations

import configparser
import importlib.metadata
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from segue.core.hookspecs import ENTRY_POINT_GROUP


@dataclass(frozen=True)
class FoundPlugin:
    """A plugin that may be imported.

    Attributes:
        source: the distribution's normalised name, or the path of a registry file.
        entry_point: the entry point's name, or what ``hooks`` in a registry file names.
        target: ``"module"`` or ``"module:attribute"``.
        error: why it cannot even be tried; empty if it can.
    """

    source: str
    entry_point: str
    target: str
    error: str = ""

    @property
    def label(self) -> str:
        return f"{self.source}:{self.entry_point}"


@dataclass(frozen=True)
class Surroundings:
    """What of its surroundings a host looks at; ``segue.testing.pytest_plugin`` narrows it.

    Attributes:
        search_directory: look for a registry file in the working directory.
        distributions: normalised names of those that may offer plugins; None means all.
    """

    search_directory: bool = True
    distributions: frozenset[str] | None = None


EVERYTHING = Surroundings()
_surroundings = EVERYTHING


def surroundings() -> Surroundings:
    return _surroundings


def set_surroundings(new: Surroundings) -> None:
    """Let hosts that are discovered from now on look at these surroundings only."""
    global _surroundings
    _surroundings = new


def normalised(distribution: str) -> str:
    """The distribution's name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def find_entry_points(path: Sequence[str] | None = None) -> tuple[FoundPlugin, ...]:
    """Entry points of the group ``segue.plugins``, sorted by distribution and name.

    A distribution that is found twice (an editable install leaves two descriptions) counts once:
    the first on the path and, in one folder, the newest, as the import system would have it.

    Args:
        path: folders to look in; ``sys.path`` by default.
    """
    allowed = _surroundings.distributions
    if allowed is not None and not allowed:
        return ()
    seen: set[str] = set()
    found: list[FoundPlugin] = []
    for folder in dict.fromkeys(sys.path if path is None else path):
        newest = sorted(_descriptions(folder), key=lambda item: _version_key(item[1]), reverse=True)
        for name, _, section in newest:
            if name not in seen:
                seen.add(name)
                found += [_parse(name, key, text) for key, text in section.items()]
    chosen = [plugin for plugin in found if allowed is None or plugin.source in allowed]
    return tuple(sorted(chosen, key=lambda plugin: (plugin.source, plugin.entry_point)))


Description = tuple[str, str, dict[str, str]]


def _descriptions(folder: str) -> list[Description]:
    """Distribution, version and our entry points, for each distribution in a folder."""
    import entrypoints

    try:
        read = list(entrypoints.iter_files_distros([folder], repeated_distro="all"))
    except Exception:
        # One description that cannot be parsed hides all others of its folder: go one by one.
        return list(_one_by_one(folder))
    return [
        (normalised(distribution.name), distribution.version or "", dict(config[ENTRY_POINT_GROUP]))
        for config, distribution in read
        if ENTRY_POINT_GROUP in config
    ]


def _one_by_one(folder: str) -> Iterator[Description]:
    import entrypoints

    for distribution in importlib.metadata.distributions(path=[folder]):
        try:
            text = distribution.read_text("entry_points.txt") or ""
            name, version = normalised(distribution.metadata["Name"]), distribution.version
        except Exception:
            continue  # not even a name: nothing that a message could point at
        config = entrypoints.CaseSensitiveConfigParser(delimiters=("=",))
        try:
            config.read_string(text)
        except configparser.Error as error:
            if ENTRY_POINT_GROUP in text:
                yield name, version, {"entry_points.txt": f"cannot be parsed ({error})"}
            continue
        if ENTRY_POINT_GROUP in config:
            yield name, version, dict(config[ENTRY_POINT_GROUP])


def _parse(source: str, name: str, text: str) -> FoundPlugin:
    import entrypoints

    try:
        point = entrypoints.EntryPoint.from_string(text, name)
    except entrypoints.BadEntryPoint:
        return FoundPlugin(source, name, "", f"its entry point is no 'module:attribute': {text}")
    attribute = f":{point.object_name}" if point.object_name else ""
    return FoundPlugin(source, name, f"{point.module_name}{attribute}")


def _version_key(version: str) -> tuple[int, ...]:
    """Good enough to tell a left-over description from the one that replaced it."""
    return tuple(int(number) for number in re.findall(r"\d+", version))
