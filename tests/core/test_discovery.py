"""Installed plugins are found without importing them, each once, whatever the order."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from segue.core.discovery import (
    EVERYTHING,
    FoundPlugin,
    Surroundings,
    find_entry_points,
    set_surroundings,
)

FIXTURES = Path(__file__).parent.parent / "plugin_fixtures"

Install = Callable[..., None]
WriteDistribution = Callable[[str, str, str], Path]


def test_finding_imports_nothing(install: Install) -> None:
    install("good", "broken_import", "exits")
    assert find_entry_points() == (
        FoundPlugin("segue-broken-import", "main", "segue_broken_import"),
        FoundPlugin("segue-exits", "main", "segue_exits"),
        FoundPlugin("segue-good", "main", "segue_good.plugin"),
    )
    assert not [name for name in sys.modules if name.startswith("segue_")]


def test_the_order_of_the_path_does_not_matter(install: Install) -> None:
    install("good", "rival", "twice")
    found = find_entry_points()
    assert found == find_entry_points(list(reversed(sys.path)))
    assert [plugin.source for plugin in found] == ["segue-good", "segue-rival", "segue-twice"]


def test_of_two_descriptions_in_one_folder_the_newer_counts(install: Install) -> None:
    install("twice")
    assert find_entry_points() == (FoundPlugin("segue-twice", "main", "segue_twice"),)


def test_an_editable_install_that_shows_twice_counts_once(install: Install, tmp_path: Path) -> None:
    source = tmp_path / "checkout"
    shutil.copytree(FIXTURES / "good", source)
    # setuptools leaves this in the source folder, which python -m puts on the path.
    (source / "segue_good-1.0.dist-info").rename(source / "Segue.Good.egg-info")
    install("good", source)
    set_surroundings(Surroundings(False, frozenset(["segue-good"])))
    assert find_entry_points() == (FoundPlugin("segue-good", "main", "segue_good.plugin"),)


def test_an_unreadable_description_hides_no_other(
    install: Install, write_distribution: WriteDistribution, tmp_path: Path
) -> None:
    folder = write_distribution("segue_garbled", "", "[segue.plugins]\nno equals sign\n")
    shutil.copytree(FIXTURES / "good", folder, dirs_exist_ok=True)
    install(folder)
    garbled, good = find_entry_points()
    assert garbled.source == "segue-garbled"
    assert "cannot be parsed" in garbled.error
    assert good == FoundPlugin("segue-good", "main", "segue_good.plugin")


def test_an_unreadable_description_of_something_else_is_not_our_business(
    install: Install, write_distribution: WriteDistribution
) -> None:
    folder = write_distribution("segue_garbled", "", "[console_scripts]\nno equals sign\n")
    install(folder, "good")
    assert [plugin.source for plugin in find_entry_points()] == ["segue-good"]


def test_an_entry_point_that_names_nothing_is_kept_as_broken(
    install: Install, write_distribution: WriteDistribution
) -> None:
    install(write_distribution("segue_dashed", "", "[segue.plugins]\nmain = not-a-module\n"))
    (plugin,) = find_entry_points()
    assert plugin.error == "its entry point is no 'module:attribute': not-a-module"


def test_only_the_distributions_that_are_allowed_are_seen(install: Install) -> None:
    install("good", "rival")
    set_surroundings(Surroundings(False, frozenset()))
    assert find_entry_points() == ()
    set_surroundings(EVERYTHING)
    assert {"segue-good", "segue-rival"} <= {plugin.source for plugin in find_entry_points()}


@pytest.mark.parametrize("folder", ["/no/such/folder", ""])
def test_odd_folders_on_the_path_are_passed_over(folder: str) -> None:
    set_surroundings(EVERYTHING)
    assert find_entry_points([folder]) == ()
