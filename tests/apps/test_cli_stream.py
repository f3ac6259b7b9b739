"""`segue stream`: raw samples on standard output, as they are made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile

SEGUE = [sys.executable, "-m", "segue.apps.cli.main"]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*SEGUE, *map(str, arguments)], capture_output=True, check=False)


def test_what_is_streamed_is_what_continue_adds(
    tiny_pipelines: dict[str, Path], prompt_file: Path, tmp_path: Path
) -> None:
    chosen = ["--pipeline", tiny_pipelines["speech"], "--seconds", "1.5", "--seed", "3"]
    chosen += ["--chunk-seconds", "0.4"]
    done = run("stream", prompt_file, *chosen)
    assert done.returncode == 0, done.stderr.decode()
    streamed = np.frombuffer(done.stdout, dtype="<i2")
    told = done.stderr.decode()
    assert "16000 Hz" in told and "1.52 s generated" in told
    assert "Traceback" not in told
    whole = run("continue", prompt_file, "-o", tmp_path / "out.wav", *chosen, "--json")
    assert whole.returncode == 0, whole.stderr.decode()
    wave, rate = soundfile.read(tmp_path / "out.wav", dtype="int16")
    assert rate == 16_000 and json.loads(whole.stdout)["seed"] == 3
    apart = np.abs(streamed.astype(int) - wave[-len(streamed) :])
    # Rounded in one way: only samples on the edge of two steps may differ.
    assert apart.max() <= 1 and (apart != 0).mean() < 0.01


def test_from_nothing(tiny_pipelines: dict[str, Path]) -> None:
    done = run("stream", "--pipeline", tiny_pipelines["piano"], "--seconds", "0.4")
    assert done.returncode == 0, done.stderr.decode()
    assert len(done.stdout) == 2 * 0.4 * 16_000


def test_values_out_of_range_are_refused_in_one_sentence(tiny_pipelines: dict[str, Path]) -> None:
    done = run("stream", "--pipeline", tiny_pipelines["piano"], "--chunk-seconds", "0")
    assert done.returncode == 2 and done.stdout == b""
    assert "--chunk-seconds: 0.0 is out of range" in done.stderr.decode()
