"""Isolate tests of Segue and its plugins; loaded by pytest where Segue is installed.

Tests see Segue's own components only: no registry file of the user's and no other installed
plugin, so that they pass on every machine. ``segue_isolate = false`` in pytest's settings turns
this off, ``@pytest.mark.segue_not_isolated`` does for one test, and
``@pytest.mark.segue_plugins("my-distribution")`` lets one test see the plugins of a distribution.

Processes that a test starts inherit all of it: isolation is two environment variables. This module
imports nothing of Segue until a test asks for it: most test runs that load it have nothing to do
with Segue.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from segue.core.plugins import PluginHost

_MARKERS = (
    "segue_plugins(*distributions): let the test see the Segue plugins of these distributions",
    "segue_not_isolated: let the test see all installed Segue plugins and the user's registry",
)
#: Environment variables of a run that sees no plugin and no registry file of the user's.
_ISOLATED = {"SEGUE_PLUGINS": "off", "SEGUE_REGISTRY": ""}
_OUTSIDE = pytest.StashKey[dict[str, str]]()


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
        # Isolate the whole run: fixtures of a module or the session come before any one test.
        config.stash[_OUTSIDE] = {n: os.environ[n] for n in _ISOLATED if n in os.environ}
        _enter(_ISOLATED)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _OUTSIDE in config.stash:
        _enter(config.stash[_OUTSIDE])
        del config.stash[_OUTSIDE]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Give each test what its markers ask for, and a process-wide host of its own."""
    if _OUTSIDE not in item.config.stash:
        return (yield)
    asked = item.get_closest_marker("segue_plugins")
    if item.get_closest_marker("segue_not_isolated") is not None:
        _enter(item.config.stash[_OUTSIDE])
    else:
        _enter({**_ISOLATED, **({"SEGUE_PLUGINS": ",".join(asked.args)} if asked else {})})
    try:
        return (yield)
    finally:
        _enter(_ISOLATED)


@pytest.fixture
def plugin_host() -> PluginHost:
    """Return a plugin host with Segue's own components and no other plugin.

    Add a plugin under test with ``plugin_host.register(module)``.
    """
    from segue.core.plugins import PluginHost
    from segue.core.registry import first_party_registry

    return PluginHost([first_party_registry()])


def _enter(variables: dict[str, str]) -> None:
    """Set these variables alone, and forget the host that saw others."""
    for name in _ISOLATED:
        os.environ.pop(name, None)
    os.environ.update(variables)
    plugins = sys.modules.get("segue.core.plugins")
    if plugins is not None:  # else there is no host to forget, and no reason to import one
        plugins.reset_default_host()
