"""Lines that long runs print where there is no terminal."""

from __future__ import annotations

import pytest

from segue.apps.cli.progress import Lines


def test_the_first_line_states_no_speed(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(every=0.0)
    lines.training_step("codec", 10, 40, {"loss": 2.0})
    lines.training_step("codec", 40, 40, {"loss": 1.0})
    lines("tokens", 1800, 3600)
    lines("tokens", 3600, 3600)
    printed = capsys.readouterr()
    first, last = printed.out.splitlines()
    assert first == "codec 10/40  loss 2"
    assert last.startswith("codec 40/40  loss 1  ") and last.endswith(" steps/s, 0 min left")
    first, last = printed.err.splitlines()
    assert first == "tokens: 0.50 of 1.00 h" and last.endswith(" s/s, 0 min left")
