"""`segue stream`: raw samples on standard output, as they are made."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from segue.apps.cli.main import main

Run = Callable[..., tuple[int, bytes, str]]


@pytest.fixture
def segue(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> Run:
    """Run `segue ...`: exit code, bytes on standard output, text on standard error."""

    def run(*arguments: object) -> tuple[int, bytes, str]:
        monkeypatch.setattr(sys, "argv", ["segue", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        printed = capsysbinary.readouterr()
        return code, printed.out, printed.err.decode()

    return run


def test_what_is_streamed_is_what_continue_adds(segue: Run, tiny: Path, prompt_file: Path) -> None:
    chosen = ["--pipeline", tiny, "--seconds", "1.5", "--seed", "3", "--chunk-seconds", "0.4"]
    code, out, told = segue("stream", prompt_file, *chosen)
    assert code == 0, told
    streamed = np.frombuffer(out, dtype="<i2")
    assert "16000 Hz" in told and "1.52 s generated" in told
    code, out, told = segue("continue", prompt_file, "-o", "out.wav", *chosen, "--json")
    assert code == 0, told
    wave, rate = soundfile.read("out.wav", dtype="int16")
    assert rate == 16_000 and json.loads(out)["seed"] == 3
    apart = np.abs(streamed.astype(int) - wave[-len(streamed) :])
    # Rounded in one way: only samples on the edge of two steps may differ.
    assert apart.max() <= 1 and (apart != 0).mean() < 0.01


def test_from_nothing(segue: Run, tiny_pipelines: dict[str, Path]) -> None:
    code, out, told = segue("stream", "--pipeline", tiny_pipelines["piano"], "--seconds", "0.4")
    assert code == 0, told
    assert len(out) == 2 * 0.4 * 16_000


def test_values_out_of_range_are_refused_in_one_sentence(segue: Run, tiny: Path) -> None:
    code, out, told = segue("stream", "--pipeline", tiny, "--chunk-seconds", "0")
    assert code == 2 and out == b""
    assert "--chunk-seconds: 0.0 is out of range" in told
