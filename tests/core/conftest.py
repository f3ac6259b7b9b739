"""Fixtures of the core's tests: fake distributions and registry files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from segue.core.discovery import Surroundings, normalised, set_surroundings

FIXTURES = Path(__file__).parent.parent / "plugin_fixtures"

Install = Callable[..., None]
WriteRegistry = Callable[[str], Path]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put fake distributions on the path: names of folders in ``plugin_fixtures``, or folders.

    Only they are seen. What was imported of them is forgotten after the test.
    """
    before = set(sys.modules)

    def install(*folders: str | Path) -> None:
        names = set()
        for folder in folders:
            monkeypatch.syspath_prepend(str(FIXTURES / folder))
            names |= {path.name.split("-")[0] for path in (FIXTURES / folder).glob("*.dist-info")}
        set_surroundings(Surroundings(False, frozenset(map(normalised, names))))

    yield install
    for name in set(sys.modules) - before:
        if name.startswith("segue_"):
            del sys.modules[name]


@pytest.fixture
def write_registry(tmp_path: Path) -> WriteRegistry:
    """Write a user's registry file; ``api_version: 1`` is put in front."""

    def write(text: str) -> Path:
        path = tmp_path / "segue-registry.yaml"
        path.write_text(f"api_version: 1\n{text}")
        return path

    return write


@pytest.fixture
def write_distribution(tmp_path: Path) -> Callable[[str, str, str], Path]:
    """Write a fake distribution of one module; returns the folder to put on the path."""

    def write(module: str, source: str, entry_points: str) -> Path:
        folder = tmp_path / "site"
        info = folder / f"{module}-1.0.dist-info"
        info.mkdir(parents=True)
        (folder / f"{module}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entry_points)
        return folder

    return write
