"""`prepare_files`: what is listed, counted, left out, held out, and what survives a kill."""

from __future__ import annotations

import csv
import json
import multiprocessing
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile
from tests.data_helpers import (
    RATE,
    contents,
    killed_again_and_again,
    manifest,
    slow_prepare,
    write_wave,
)

from segue.core.errors import DataError, OutputError, SegueError
from segue.data import workers
from segue.data.prepare import prepare_files
from segue.data.sources import Grouping, read_recordings


def noise(path: Path, seed: int, seconds: float = 0.3, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = numpy.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE))
    soundfile.write(path, (wave * 32768).astype(numpy.int16), RATE, **options)
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def collection(folder: Path) -> Path:
    """Eight good recordings of four speakers, and one of each kind that is not."""
    for number in range(8):
        noise(folder / f"spk{number % 4}" / f"{number}.wav", number)
    noise(folder / "spk1" / "copy.wav", 5)
    noise(folder / "spk2" / "the same in other bytes.flac", 2)
    write_wave(folder / "spk3" / "silent.wav", 0.3, 0.0)
    noise(folder / "spk3" / "short.wav", 99, 0.02)
    (folder / "spk3" / "text.wav").write_text("no audio")
    (folder / "spk3" / "empty.wav").touch()
    noise(folder / "lost" / "short.wav", 97, 0.02)
    cut = noise(folder / "spk3" / "cut.flac", 98, 3.0)
    cut.write_bytes(cut.read_bytes()[:20_000])
    broken = numpy.full(RATE, numpy.nan, numpy.float32)
    soundfile.write(folder / "spk3" / "nan.wav", broken, RATE, subtype="FLOAT")
    return folder


def test_what_cannot_be_used_is_counted_and_listed(tmp_path: Path) -> None:
    source = collection(tmp_path / "in")
    told: list[tuple[str, int, int]] = []
    summary = prepare_files(source, tmp_path / "out", workers=1, progress=lambda *p: told.append(p))
    problems = {
        Path(row["path"]).name: row["problem"] for row in rows(tmp_path / "out/problems.csv")
    }
    assert problems == {
        "copy.wav": "duplicate",
        "the same in other bytes.flac": "duplicate",
        "silent.wav": "silent",
        "short.wav": "too short",
        "text.wav": "corrupt",
        "empty.wav": "corrupt",
        "cut.flac": "corrupt",
        "nan.wav": "nan",
    }
    assert summary["left_out"] == {
        "corrupt": 3, "duplicate": 2, "nan": 1, "silent": 1, "too short": 2,
    }  # fmt: skip
    assert summary["recordings"] == 8 and sum(summary["splits"].values()) == 8
    assert json.loads((tmp_path / "out/summary.json").read_text()) == summary
    found = read_recordings(tmp_path / "out" / "manifest.csv")
    assert sorted(r.path.name for r in found) == [f"{n}.wav" for n in range(8)]
    assert all(r.seconds == pytest.approx(0.3) for r in found)
    groups = [{r.group for r in found.of_split(split)} for split in ("train", "valid")]
    assert groups[0] and groups[1] and not groups[0] & groups[1]
    assert summary["groups"] == {"train": len(groups[0]), "valid": len(groups[1])}
    assert told and told[-1][0] == "scan" and told[-1][1] == told[-1][2]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("manifest.csv", "problems.csv", "summary.json"),
    ]


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_the_same_source_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    """Forked processes need not import PyTorch, which takes seconds; users have spawned ones."""
    context = multiprocessing.get_context(start)
    monkeypatch.setattr(workers.multiprocessing, "get_context", lambda method: context)
    source = collection(tmp_path / "in")
    for out, count in (("one", 1), ("two", 2)):
        summary = prepare_files(source, tmp_path / out, workers=count)
        assert summary["recordings"] == 8
    prepare_files(source, tmp_path / "two")  # again, over it
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_manifest_s_own_split_is_kept_and_its_column_can_be_the_group(tmp_path: Path) -> None:
    for number in range(4):
        noise(tmp_path / f"{number}.wav", number)
    listed = manifest(tmp_path, "path,split,reader", *[
        f"{n}.wav,{'valid' if n == 2 else 'train'},r{n}" for n in range(4)
    ])  # fmt: skip
    prepare_files(listed, tmp_path / "out", grouping=Grouping("reader"))
    found = rows(tmp_path / "out" / "manifest.csv")
    assert [(row["split"], row["group"]) for row in found] == [
        ("train", "r0"), ("train", "r1"), ("valid", "r2"), ("train", "r3"),
    ]  # fmt: skip


def test_parts_of_files_are_prepared_too(tmp_path: Path) -> None:
    noise(tmp_path / "long.wav", 0, 2.0)
    listed = manifest(tmp_path, "path,start_s,duration_s,group", *[
        "long.wav,0.5,0.5,a", "long.wav,1.25,0.5,b", "long.wav,1.9,0.5,c",
    ])  # fmt: skip
    prepare_files(listed, tmp_path / "out")
    found = list(read_recordings(tmp_path / "out" / "manifest.csv"))
    assert [(r.start, round(r.seconds, 6)) for r in found] == [(0.5, 0.5), (1.25, 0.5), (1.9, 0.1)]


def test_sources_of_which_nothing_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="holds no recording that can be used; add audio"):
        prepare_files(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "text.wav").write_text("no audio")
    with pytest.raises(DataError, match="holds no recording that can be used; most are corrupt"):
        prepare_files(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.csv").exists()


def test_what_was_missing_is_looked_for_again(tmp_path: Path) -> None:
    """A disk that was not mounted leaves nothing behind that says so for good."""
    noise(tmp_path / "a.wav", 0)
    listed = manifest(tmp_path, "path,group,duration_s", "a.wav,a,1", "gone.wav,b,1")
    summary = prepare_files(listed, tmp_path / "out")
    assert summary["left_out"] == {"missing": 1}
    shutil.copy(noise(tmp_path / "b.wav", 1), tmp_path / "gone.wav")
    assert prepare_files(listed, tmp_path / "out")["left_out"] == {}


def test_a_source_that_vanishes_is_an_error(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for number in range(4):
        noise(source / f"{number}.wav", number)

    def vanish(name: str, done: int, total: int) -> None:
        shutil.rmtree(source, ignore_errors=True)

    with pytest.raises(SegueError, match=r"in: has vanished"):
        prepare_files(source, tmp_path / "out", progress=vanish)
    assert not (tmp_path / "out" / "manifest.csv").exists()


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    for number in range(4):
        noise(tmp_path / "in" / f"{number}.wav", number)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))  # bytes of any one file
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            prepare_files(tmp_path / "in", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "out" / "manifest.csv").exists()
    assert prepare_files(tmp_path / "in", tmp_path / "out")["recordings"] == 4


@pytest.mark.slow
def test_a_preparation_survives_kills(tmp_path: Path) -> None:
    for number in range(600):
        noise(tmp_path / "in" / f"spk{number % 9}" / f"{number}.wav", number % 500, 0.2)
    slow_prepare(tmp_path / "in", tmp_path / "whole")
    kills = killed_again_and_again(slow_prepare, tmp_path / "in", tmp_path / "killed")
    assert kills >= 10
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert not (tmp_path / "killed" / ".scan").exists()


@pytest.mark.slow
def test_100_000_files_are_prepared_in_little_memory(tmp_path: Path) -> None:
    """Rows of a manifest that all lead to a few tiny files."""
    for number in range(50):
        noise(tmp_path / f"{number}.wav", number, 0.02)
    listed = manifest(tmp_path, "path,group,start_s,duration_s", *[
        f"{n % 50}.wav,s{n // 60},{(n // 50) * 2e-6:.6f},0.015" for n in range(100_000)
    ])  # fmt: skip
    code = (
        "import resource, sys; from pathlib import Path\n"
        "import torch; from segue.data.prepare import prepare_files\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "summary = prepare_files(sys.argv[1], Path(sys.argv[2]), min_seconds=0.001)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
        "assert summary['recordings'] + sum(summary['left_out'].values()) == 100_000\n"
    )
    run = [sys.executable, "-c", code, str(listed), str(tmp_path / "out")]
    done = subprocess.run(run, check=True, capture_output=True, text=True)
    assert int(done.stdout) < 100_000  # kB


def test_every_format_that_libsndfile_reads_is_listed_and_the_rest_reported(tmp_path: Path) -> None:
    formats = {"oga": "OGG", "aifc": "AIFF", "au": "AU", "caf": "CAF", "w64": "W64", "sph": "NIST",
               "rf64": "RF64", "voc": "VOC"}  # fmt: skip
    for number, (suffix, kind) in enumerate(formats.items()):
        noise(tmp_path / "in" / f"{suffix}.{suffix}", number, format=kind)
    (tmp_path / "in" / "song.M4A").write_bytes(b"no audio that libsndfile knows")
    summary = prepare_files(tmp_path / "in", tmp_path / "out")
    assert summary["recordings"] == len(formats)
    assert summary["left_out"] == {"not usable": 1}
    (problem,) = rows(tmp_path / "out" / "problems.csv")
    assert problem["path"].endswith("song.M4A") and "ffmpeg" in problem["what"]
