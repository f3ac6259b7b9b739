"""`segue label`: phones for `segue evaluate semantic`."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.apps.conftest import Segue, tone

from segue.plugins.domains.speech import DOMAIN


def test_phones_are_labelled_and_can_be_told_apart(segue: Segue, tmp_path: Path) -> None:
    pytest.importorskip("hama")
    folder = tmp_path / "speakers" / "one"
    folder.mkdir(parents=True)
    (folder / "a.flac").write_bytes(DOMAIN.prompt.read_bytes())
    (folder / "broken.wav").write_bytes(b"no audio")
    done = segue("label", "--data", folder.parent, "-o", "phones.csv", "--split", "all", "--json")
    assert done.code == 0 and done.json["unusable"] == 1
    with Path("phones.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == done.json["items"] > 5
    assert {row["speaker"] for row in rows} == {"a"}
    segments = Path("segments.csv")
    segments.write_text(f"path,start_s,duration_s,group\n{folder / 'a.flac'},1.0,2.0,one\n")
    done = segue("label", "--data", segments, "-o", "none.csv", "--split", "all")
    assert done.refused("segments.csv", "a file of its own") and not Path("none.csv").exists()
    assert all(" " in row["context"] and float(row["start"]) < float(row["end"]) for row in rows)


def test_what_cannot_be_labelled_is_refused(
    segue: Segue, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("sounds").mkdir()
    write("sounds/a.wav", tone(1))
    monkeypatch.setitem(sys.modules, "hama", None)
    for loaded in [name for name in sys.modules if name.startswith("segue.plugins.metrics.phones")]:
        monkeypatch.delitem(sys.modules, loaded)
    done = segue("label", "--data", "sounds", "-o", "phones.csv", "--split", "all")
    assert done.refused("needs the extra 'metrics'", "pip install")
