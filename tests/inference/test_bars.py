"""Bars are shown where somebody looks, and nowhere else."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from segue import Pipeline
from segue.inference import bars
from segue.inference.bars import bars_by_default, shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bars, "WAIT", 0.0)
    monkeypatch.setattr(bars, "_by_default", True)


def look(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Let standard error be a terminal; not in a fixture, as pytest replaces it after those."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


def work(choice: Any) -> bool:
    with shown(choice) as report:
        if report is not None:
            report("coarse", 1, 2)
            report("coarse", 2, 2)
        return report is not None


def test_a_terminal_shows_a_bar_for_each_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = look(monkeypatch)
    assert work(None)
    assert "coarse" in terminal.getvalue()


def test_short_work_shows_none(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = look(monkeypatch)
    monkeypatch.setattr(bars, "WAIT", 60.0)
    assert work(None)
    assert terminal.getvalue() == ""


def test_none_are_shown_if_nobody_looks_or_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = look(monkeypatch)
    assert not work(False)
    bars_by_default(False)
    assert not work(None)
    bars_by_default(True)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not work(None)
    assert terminal.getvalue() == ""


def test_a_callback_gets_every_call_and_no_bar_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = look(monkeypatch)
    calls: list[tuple[str, int, int]] = []
    assert work(lambda *call: calls.append(call))
    assert calls == [("coarse", 1, 2), ("coarse", 2, 2)]
    assert terminal.getvalue() == ""


def test_a_notebook_shows_html_that_is_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[str] = []
    handle = SimpleNamespace(update=pages.append)
    screen = ModuleType("IPython.display")
    screen.HTML = str  # type: ignore[attr-defined]
    screen.display = lambda page, display_id: pages.append(page) or handle  # type: ignore[attr-defined]
    shell = type("ZMQInteractiveShell", (), {})()
    kernel = ModuleType("IPython")
    kernel.get_ipython = lambda: shell  # type: ignore[attr-defined]
    kernel.display = screen  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    monkeypatch.setitem(sys.modules, "IPython.display", screen)
    assert work(None)
    assert 'max="2"' in pages[0] and "coarse 2/2" in pages[-2]
    assert pages[-1] == ""


def test_loading_counts_its_parts(tiny_pipelines: dict[str, Path]) -> None:
    seen: list[tuple[str, int, int]] = []
    loaded = Pipeline.from_pretrained(
        tiny_pipelines["speech"], progress=lambda *counts: seen.append(counts)
    )
    number = len(loaded.parts)
    assert seen == [("loading", done + 1, number) for done in range(number)]
