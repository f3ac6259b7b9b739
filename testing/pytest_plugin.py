"""pytest fixtures for Segue and its plugins, loaded by pytest wherever Segue is installed.

Tests see Segue's own components only: no registry file of the user's and no other installed
plugin, so that they pass on every machine. ``segue_isolate = false`` in pytest's settings turns
this off, ``@pytest.mark.segue_not_isolated`` does for one test, and
``@pytest.mark.segue_plugins("my-distribution")`` lets one test see the plugins of a distribution.

It imports nothing of Segue but a few light modules, and no torch: most test runs that load it are
not about Segue.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from segue.core.discovery import Surroundings
    from segue.core.manager import PluginHost

VARIABLE = "SEGUE_REGISTRY"
_MARKERS = (
    "segue_plugins(*distributions): let the test see the Segue plugins of these distributions",
    "segue_not_isolated: let the test see all installed Segue plugins and the user's registry",
)

#: What an isolated run found: its surroundings and the user's SEGUE_REGISTRY.
_OUTSIDE = pytest.StashKey[tuple["Surroundings", "str | None"]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "segue_isolate",
        "hide installed Segue plugins and the user's registry file from tests",
        type="bool",
        default=True,
    )


def pytest_configure(config: pytest.Config) -> None:
    for marker in _MARKERS:
        config.addinivalue_line("markers", marker)
    if config.getini("segue_isolate"):
        from segue.core.discovery import surroundings

        # For the whole run: fixtures of a module or the session come before any one test.
        config.stash[_OUTSIDE] = (surroundings(), os.environ.get(VARIABLE))
        _enter(_inside(), None)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _OUTSIDE in config.stash:
        _enter(*config.stash[_OUTSIDE])
        del config.stash[_OUTSIDE]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Give each test what its markers ask for, and a process-wide host of its own."""
    outside = item.config.stash.get(_OUTSIDE, None)
    if outside is None:
        return (yield)
    marker = item.get_closest_marker("segue_plugins")
    if item.get_closest_marker("segue_not_isolated") is not None:
        _enter(*outside)
    else:
        _enter(_inside(marker.args if marker is not None else ()), None)
    try:
        return (yield)
    finally:
        _enter(_inside(), None)


@pytest.fixture
def plugin_host() -> PluginHost:
    """A plugin host with Segue's own components and no other plugin.

    Add a plugin under test with ``plugin_host.register(module)``.
    """
    from segue.core.manager import PluginHost
    from segue.core.registry import first_party_registry

    return PluginHost([first_party_registry()])


def _inside(distributions: tuple[str, ...] = ()) -> Surroundings:
    from segue.core.discovery import Surroundings, normalised

    return Surroundings(False, frozenset(normalised(name) for name in distributions))


def _enter(new: Surroundings, registry: str | None) -> None:
    """Let hosts see these surroundings, and forget the host that saw others."""
    from segue.core.discovery import set_surroundings

    set_surroundings(new)
    if registry is None:
        os.environ.pop(VARIABLE, None)
    else:
        os.environ[VARIABLE] = registry
    manager = sys.modules.get("segue.core.manager")
    if manager is not None:  # else there is no host to forget, and no reason to import one
        manager.reset_default_host()
