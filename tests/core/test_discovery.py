"""Installed plugins are found without importing them, each once, whatever the order."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from segue.core.discovery import PluginStatus, find_plugins

FIXTURES = Path(__file__).parent.parent / "plugin_fixtures"
GOOD = PluginStatus("segue-good", "main", "segue_good.plugin")

Install = Callable[..., None]
WriteDistribution = Callable[[str, str, str], Path]


def test_finding_imports_nothing(install: Install) -> None:
    install("good", "broken_import", "exits")
    assert find_plugins() == [
        PluginStatus("segue-broken-import", "main", "segue_broken_import"),
        PluginStatus("segue-exits", "main", "segue_exits"),
        GOOD,
    ]
    assert not [name for name in sys.modules if name.startswith("segue_")]


def test_the_order_of_the_path_does_not_matter(install: Install) -> None:
    install("good", "rival", "twice")
    found = find_plugins()
    assert found == find_plugins(list(reversed(sys.path)))
    assert [plugin.source for plugin in found] == ["segue-good", "segue-rival", "segue-twice"]


def test_of_two_descriptions_in_one_folder_the_newer_counts(install: Install) -> None:
    install("twice")
    assert find_plugins() == [PluginStatus("segue-twice", "main", "segue_twice")]


def test_an_editable_install_that_shows_twice_counts_once(install: Install, tmp_path: Path) -> None:
    source = tmp_path / "checkout"
    shutil.copytree(FIXTURES / "good", source)
    # setuptools leaves this in the source folder, which python -m puts on the path.
    (source / "segue_good-1.0.dist-info").rename(source / "Segue.Good.egg-info")
    install(source, "good")
    assert find_plugins() == [GOOD]


def test_an_unreadable_description_hides_no_other(
    install: Install, write_distribution: WriteDistribution
) -> None:
    folder = write_distribution("segue_garbled", "", "[segue.plugins]\nno equals sign\n")
    shutil.copytree(FIXTURES / "good", folder, dirs_exist_ok=True)
    (folder / "nameless-1.0.dist-info").mkdir()
    (folder / "nameless-1.0.dist-info" / "entry_points.txt").write_bytes(b"[segue.plugins]\n\xff")
    install(folder)
    garbled, good = find_plugins()
    assert (garbled.source, garbled.state) == ("segue-garbled", "broken")
    assert good == GOOD


def test_an_unreadable_description_of_something_else_is_not_our_business(
    install: Install, write_distribution: WriteDistribution
) -> None:
    install(write_distribution("segue_garbled", "", "[console_scripts]\nno equals sign\n"), "good")
    assert find_plugins() == [GOOD]


def test_an_entry_point_that_names_nothing_is_kept_as_broken(
    install: Install, write_distribution: WriteDistribution
) -> None:
    install(write_distribution("segue_dashed", "", "[segue.plugins]\nmain = not-a-module\n"))
    (plugin,) = find_plugins()
    assert plugin.state == "broken" and "not-a-module" in plugin.error


@pytest.mark.parametrize(
    ("chosen", "found"),
    [("off", []), ("", []), ("Segue_Good, nobody", ["segue-good"])],
)
def test_the_safe_mode_uses_chosen_distributions_only(
    install: Install, monkeypatch: pytest.MonkeyPatch, chosen: str, found: list[str]
) -> None:
    install("good", "rival")
    monkeypatch.setenv("SEGUE_PLUGINS", chosen)
    assert [plugin.source for plugin in find_plugins()] == found
    monkeypatch.delenv("SEGUE_PLUGINS")
    assert {"segue-good", "segue-rival"} <= {plugin.source for plugin in find_plugins()}


@pytest.mark.parametrize("folder", ["/no/such/folder", ""])
def test_odd_folders_on_the_path_are_passed_over(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SEGUE_PLUGINS")
    assert find_plugins([folder]) == []
