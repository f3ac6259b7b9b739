"""What Segue computes is what was recorded, and what version 0.1 saved can still be used."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tools" / "golden.py"
RECORD = ROOT / "tests" / "golden" / "golden.json"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Import a script of ``tools`` by its name."""
    monkeypatch.syspath_prepend(str(GOLDEN.parent))
    return importlib.import_module


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_everything_is_as_recorded() -> None:
    done = subprocess.run(
        [sys.executable, str(GOLDEN), "check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.usefixtures("one_thread")
def test_what_was_saved_goes_on(
    tool: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pipelines generate the same, and trainings that were stopped take the same last steps."""
    monkeypatch.chdir(tmp_path)
    golden, recorded = tool("golden"), json.loads(RECORD.read_text())["sections"]["saved"]
    found = json.loads(json.dumps(tool("golden_training").saved()))
    assert list(golden.differences(recorded, found, golden.LOOSE)) == []
    for log in (found["stopped"]["codec"], found["run"]["stages.acoustic"]):
        assert log["step"][-2:] == [5, 6]


def test_differences_are_told(tool: Callable[[str], Any]) -> None:
    golden = tool("golden")
    old = {"loss": [1.0, 2.0], "ids": "ab", "audio_sha256": "c", "gone": 1}
    new = {"loss": [1.00001, 2.1], "ids": "ac", "audio_sha256": "d", "more": 1}
    loose = list(golden.differences(old, new, golden.LOOSE, "part"))
    assert loose == [
        "part / loss [1]: was 2.0, is 2.1",
        "part / ids: was 'ab', is 'ac'",
        "part / gone: is missing",
        "part / more: is new",
    ]
    assert len(list(golden.differences(old, new, golden.EXACT))) == 6
