"""Fixtures of the command line's tests: run a command in this process and see what it left."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile
import typer.main
from tests.plugins.provenance.conftest import credentials

from segue.apps import spectrogram
from segue.apps.cli import main as cli
from segue.apps.cli import output
from segue.core.domain import Domain

__all__ = ["credentials"]  # a fixture


@dataclass(frozen=True)
class Finished:
    """What became of a command: exit code, what it printed, what files are new or changed."""

    code: int
    out: str
    err: str
    new: list[str]

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def refused(self, *parts: str) -> bool:
        """Exit code 2, one line on standard error that names all ``parts``, and nothing else."""
        lines = self.err.splitlines()
        return (
            self.code == 2
            and self.out == ""
            and self.new == []
            and len(lines) == 1
            and lines[0].startswith("error: ")
            and lines[0].count("; ") >= 1  # the place and problem, then the fix
            and all(part in lines[0] for part in parts)
        )


Segue = Callable[..., Finished]


@pytest.fixture(scope="session", autouse=True)
def one_program() -> Iterator[None]:
    """Make the tree of commands once, not anew for each command that a test runs; draw coarsely."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", cache(typer.main.get_command))
        patch.setattr(spectrogram, "DOTS_PER_INCH", 30)
        yield


def snapshot(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.lstat().st_mtime_ns
        for path in folder.rglob("*")
        if not path.is_dir() or not any(path.iterdir())
    }


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of commands."""
    folder = tmp_path / "place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(output.console, "width", 200)
    return folder


@pytest.fixture
def segue(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Segue:
    """Run `segue ...` in this process, in the folder ``place``."""

    def run(*arguments: object, program: Callable[[], None] = cli.main) -> Finished:
        monkeypatch.setattr(sys, "argv", ["segue", *map(str, arguments)])
        before = snapshot(place)
        capsys.readouterr()
        code: Any = 0
        try:
            program()
        except SystemExit as end:
            code = end.code or 0
        printed = capsys.readouterr()
        after = snapshot(place)
        new = sorted(name for name, changed in after.items() if before.get(name) != changed)
        return Finished(code, printed.out, printed.err, new)

    return run


@pytest.fixture
def tiny(tiny_pipelines: dict[str, Path]) -> Path:
    """A tiny speech pipeline's directory."""
    return tiny_pipelines["speech"]


@pytest.fixture
def shipped(tiny_pipelines: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The domains ship the tiny pipelines."""
    monkeypatch.setattr(Domain, "pretrained", property(lambda self: tiny_pipelines[self.name]))
    return tiny_pipelines


def tone(seconds: float, rate: int = 16_000, channels: int = 1) -> Any:
    time = numpy.arange(round(seconds * rate)) / rate
    wave = 0.3 * numpy.sin(2 * numpy.pi * 220 * time)
    return wave if channels == 1 else numpy.stack([wave] * channels, axis=1)


@pytest.fixture
def write(place: Path) -> Callable[..., Path]:
    """Write a recording into the working directory."""

    def write(
        name: str, wave: Any, rate: int = 16_000, kind: str | None = None, code: str | None = None
    ) -> Path:
        soundfile.write(place / name, wave, rate, format=kind, subtype=code)
        return Path(name)

    return write
