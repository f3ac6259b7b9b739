"""The list of deliberate faults stays true: each can be planted, and its tests exist."""

from __future__ import annotations

import shlex
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
FAULTS = yaml.safe_load((ROOT / "tests" / "faults.yaml").read_text(encoding="utf-8"))


def test_every_fault_can_be_planted() -> None:
    assert len({fault["name"] for fault in FAULTS}) == len(FAULTS) >= 40
    for fault in FAULTS:
        code = (ROOT / fault["file"]).read_text(encoding="utf-8")
        assert code.count(fault["find"]) == 1 and fault["replace"] != fault["find"], fault["name"]
        assert (ROOT / shlex.split(fault["tests"])[0].partition("::")[0]).is_file(), fault["name"]
