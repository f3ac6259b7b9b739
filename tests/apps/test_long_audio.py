"""An hour of 44.1 kHz stereo takes the memory of minutes, in whole commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import soundfile

RATE = 44_100
MOST_MORE = 150  # MiB that an hour may take beyond three minutes
#: The peak of the program itself: ``ru_maxrss`` would count the process that started it.
PEAK = """import sys
from segue.apps.cli.main import main
try:
    main()
finally:
    with open("/proc/self/status") as status:
        print("PEAK", next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""
COMMANDS = {
    "tokenize": ("tokenize", "--config", "TINY", "--data", "list.csv", "-o", "run"),
    "detect": ("detect", "long.wav"),
    "train semantic_tokenizer": (
        *("train", "semantic_tokenizer", "--domain", "speech/baseline", "--data", "list.csv"),
        *("-o", "run", "--set", "semantic_tokenizer.options.num_clusters=16"),
    ),
    "resynthesize": ("resynthesize", "long.wav", "-p", "TINY", "-o", "out.flac"),
}


def noise(path: Path, minutes: float) -> None:
    second = 0.1 * numpy.random.default_rng(0).standard_normal((RATE, 2), dtype=numpy.float32)
    with soundfile.SoundFile(path, "w", RATE, 2) as file:
        for number in range(round(minutes * 60)):
            file.write(second * (0.1 + 0.09 * (number % 10)))


def peak(folder: Path, minutes: float, command: tuple[str, ...], tiny: Path) -> float:
    """Return the peak memory of a command on a file of so many minutes, in MiB."""
    folder.mkdir()
    noise(folder / "long.wav", minutes)
    noise(folder / "short.wav", 0.1)
    rows = f"path,split\n{folder}/long.wav,train\n{folder}/short.wav,valid\n"
    (folder / "list.csv").write_text(rows)
    arguments = [str(tiny) if part == "TINY" else part for part in command]
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *arguments],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout.rpartition("PEAK")[2]) / 1024


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", COMMANDS)
def test_an_hour_takes_the_memory_of_minutes(
    name: str, tmp_path: Path, tiny_pipelines: dict[str, Path]
) -> None:
    few, many = (
        peak(tmp_path / str(minutes), minutes, COMMANDS[name], tiny_pipelines["speech"])
        for minutes in (3, 60)
    )
    print(f"{name}: {few:.0f} MiB for 3 min, {many:.0f} MiB for an hour")  # noqa: T201
    assert many - few < MOST_MORE
