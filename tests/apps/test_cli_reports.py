"""What the `segue evaluate` commands share."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from segue.apps.cli.reports import finish, held_out


@pytest.mark.parametrize(("count", "items"), [(99, 50), (100, 50), (7, 3), (3, 50)])
def test_recordings_are_spread_over_all_there_are(tmp_path: Path, count: int, items: int) -> None:
    rows = []
    for index in range(count):
        (tmp_path / f"{index}.wav").touch()
        rows.append(f"{index}.wav,1.0,,valid\n")
    (tmp_path / "all.csv").write_text("path,duration_s,group,split\n" + "".join(rows))
    found = [int(one.path.stem) for one in held_out(tmp_path / "all.csv", items, "valid")]
    assert len(found) == min(items, count) and found[0] == 0
    steps = {after - before for before, after in zip(found, [*found[1:], count], strict=True)}
    assert max(steps) - min(steps) <= 1


FIGURE = {"mean": 0.25, "low": math.nan, "high": None, "lowest": 0.1, "highest": 0.4, "count": 2}


def test_what_is_no_number_is_null(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = {"groups": {"one": {"error": FIGURE}}, "rows": [(math.inf, 1, "NaN", None, True)]}

    def refuse(name: str) -> None:
        raise AssertionError(name)

    finish(report, "one", {}, tmp_path / "report.json", json=True)
    for text in ((tmp_path / "report.json").read_text(), capsys.readouterr().out):
        found = json.loads(text, parse_constant=refuse)
        assert found["groups"]["one"]["error"] == FIGURE | {"low": None}
        assert found["rows"] == [[None, 1, "NaN", None, True]]


def test_a_figure_without_an_interval(capsys: pytest.CaptureFixture[str]) -> None:
    finish({}, "part", {"one": {"error": FIGURE | {"low": None}}}, None, json=False)
    shown = capsys.readouterr().out
    assert "0.250" in shown and "–" in shown and "[" not in shown
