"""`segue detect`, `segue train-detector` and stamped files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile
import torch
from tests.apps.conftest import Segue, tone
from tests.plugins.provenance.conftest import Credentials

from segue.apps.cli.detect import _shortened
from segue.core.checkpoint import save_component
from segue.core.plugins import reset_default_host
from segue.plugins.detectors.spectral.config import SpectralDetectorOptions
from segue.plugins.detectors.spectral.model import SpectralDetector
from segue.plugins.provenance.marks import read_stamp, stamp

Write = Callable[..., Path]
MARKS = "[segue.plugins.provenance.stamp, segue.plugins.provenance.watermark]"


@pytest.fixture
def untrained(tmp_path: Path) -> Path:
    """A detector that takes everything for generated."""
    detector = SpectralDetector(SpectralDetectorOptions(channels=(4,), bands=16))
    with torch.no_grad():
        detector.head.weight.zero_()
        detector.head.bias.copy_(torch.tensor([0.0, 0.0, 5.0]))
    directory = tmp_path / "detector"
    directory.mkdir()
    save_component(detector, directory, "detector", "spectral_detector.v1", {})
    return directory


def test_files_of_any_rate_and_length_are_judged(
    segue: Segue, write: Write, untrained: Path
) -> None:
    short, stereo = write("a.wav", tone(0.7)), write("b.flac", tone(3.2, 44_100, 2), 44_100)
    done = segue("detect", short, stereo, "--detector", untrained, "--json")
    assert (done.code, done.err, done.new) == (0, "", [])
    first, second = done.json
    assert (first["file"], first["verdict"], first["stamp"]) == ("a.wav", "generated", None)
    assert len(first["generated_by_second"]) == 1 and len(second["generated_by_second"]) == 3
    assert first["probability"]["generated"] == pytest.approx(0.9867, abs=1e-3)
    table = segue("detect", short, "--detector", untrained)
    assert table.code == 0 and "generated" in table.out and "a.wav" in table.out
    assert "9" in table.out and "several seconds" not in table.out
    long = segue("detect", write("c.wav", tone(41)), "--detector", untrained)
    (line,) = [line for line in long.out.splitlines() if "c.wav" in line]  # one, however long
    assert "9" * 14 in line and "9" * 15 not in line and "several seconds" in long.out
    assert segue("detect", short, "--detector", untrained, "--check").code == 1


def test_a_long_report_keeps_the_highest_of_each_part() -> None:
    seconds: list[float | None] = [0.0] * 41
    seconds[4], seconds[40] = 0.97, None
    assert _shortened(seconds) == [0.0, 0.97, *[0.0] * 12]
    assert _shortened([None] * 21) == [None] * 11 and _shortened([0.5] * 20) == [0.5] * 20


def test_what_cannot_be_judged_is_refused(
    segue: Segue, write: Write, untrained: Path, tiny: Path
) -> None:
    sound, blip = write("a.wav", tone(1)), write("blip.wav", tone(0.1))
    silent = write("silent.wav", numpy.zeros(16_000))
    assert segue("detect", "none.wav", "--detector", untrained).refused("none.wav", "exist")
    assert segue("detect", blip, "--detector", untrained).refused("blip.wav", "0.100 s")
    assert segue("detect", silent, "--detector", untrained).refused("silent.wav", "silent")
    assert segue("detect", sound, "--domain", "whales").refused("whales", "no detector ships")
    assert segue("detect", sound, "--detector", tiny / "codec").refused("holds no detector")
    assert segue("detect", sound, "--detector", "nowhere").refused("nowhere", "component.json")


def test_a_detector_is_trained_and_used(
    segue: Segue, tiny_pipelines: dict[str, Path], recordings_folder: Path, prompt_file: Path
) -> None:
    tiny, other = tiny_pipelines["speech"], tiny_pipelines["piano"]
    arguments: list[Any] = [
        *("train-detector", "--data", recordings_folder, "-p", tiny, "-o", "work", "--items", 9),
        *("--prompt-seconds", 0.5, "--seconds", 1, "--steps", 3, "--json"),
        *("--also", other),
    ]
    done = segue(*arguments)
    assert (done.code, done.err) == (0, "")
    assert {"work/detector/component.json", "work/figures.json"} <= set(done.new)
    report = done.json
    assert report["items"] > 0 and report["learnt_from"] > 0
    assert report["figures"]["generated against real"]["count"] == report["items"]
    assert report["pipeline"] == "speech, piano"
    counts = [one["generated recognised"]["count"] for one in report["pipelines"].values()]
    assert list(report["pipelines"]) == ["piano", "speech"] and sum(counts) == report["items"]
    assert list(report["levels"]) == ["1", "2", "3"]  # every one that the codec has
    again = segue(*arguments)  # examples are kept, and the seed decides
    assert not any("clips" in name for name in again.new) and again.json == report
    assert segue(*arguments, "--seed", 1).refused("work", "examples of another pipeline")
    assert segue("detect", prompt_file, "--detector", "work/detector").code == 0


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.aiff"])
def test_a_stamp_says_who_made_a_file_and_leaves_its_samples(
    write: Write, segue: Segue, untrained: Path, name: str
) -> None:
    path = write(name, tone(1))
    before = soundfile.read(path, dtype="int32")[0]
    assert read_stamp(path) is None
    assert stamp(path, {"task": "continue", "seed": 3, "config": {"long": True}})
    assert read_stamp(path) == {"task": "continue", "seed": 3}
    assert numpy.array_equal(soundfile.read(path, dtype="int32")[0], before)
    report = segue("detect", path, "--detector", untrained, "--json").json[0]
    assert report["stamp"] == {"task": "continue", "seed": 3}


def test_a_lossy_file_is_left_alone(write: Write) -> None:
    path = write("a.ogg", tone(1))
    before = path.read_bytes()
    assert not stamp(path, {"seed": 3})
    assert path.read_bytes() == before


@pytest.mark.segue_not_isolated
def test_a_registry_file_turns_marks_on(
    segue: Segue, prompt_file: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("segue-registry.yaml").write_text(f"api_version: 1\nhooks: {MARKS}\n", encoding="utf-8")
    monkeypatch.setenv("SEGUE_REGISTRY", "segue-registry.yaml")
    reset_default_host()  # fixtures may have asked for a host that has not read the file
    done = segue("continue", prompt_file, "-o", "out.wav", "-p", tiny, "--seconds", 0.5)
    assert done.code == 0, done.err
    said = read_stamp(Path("out.wav"))
    assert said is not None and said["task"] == "continue" and said["seed"] == 0
    description = json.loads(Path("out.wav.json").read_text(encoding="utf-8"))
    assert description["watermark"] == "spread"


def test_files_are_signed_on_request_and_detect_says_by_whom(
    segue: Segue,
    tiny: Path,
    untrained: Path,
    credentials: Credentials,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair = [credentials.certificate, credentials.key]
    generate = ["generate", "-p", tiny, "--seconds", 0.6]
    done = segue(*generate, "-o", "a.wav", "--sign", *pair)
    assert done.code == 0, done.err
    report = segue("detect", "a.wav", "--detector", untrained, "--json").json[0]
    assert report["signature"]["signer"] == "Test studio, Signer"
    assert report["signature"]["state"] == "intact" and report["signature"]["said"]["seed"] == 0
    assert len(report["watermark"]["score_by_second"]) == 1
    table = segue("detect", "a.wav", "--detector", untrained)
    assert "signed by Test studio, Signer with Segue" in table.out and "intact" in table.out
    monkeypatch.setenv("SEGUE_SIGN", " ".join(map(str, pair)))
    assert segue(*generate, "-o", "b.flac").code == 0
    report = segue("detect", "b.flac", "--detector", untrained, "--json").json[0]
    assert report["signature"]["state"] == "intact"
    assert segue("resynthesize", "a.wav", "-p", tiny, "-o", "d.wav").code == 0
    report = segue("detect", "d.wav", "--detector", untrained, "--json").json[0]
    assert report["signature"]["said"]["task"] == "resynthesize"
    assert segue(*generate, "-o", "a.ogg").refused("a.ogg", "cannot hold a signature")
    assert segue(*generate, "-o", "-").refused("--sign", "needs a file")
    monkeypatch.setenv("SEGUE_SIGN", f"{credentials.root} {credentials.key}")
    assert segue(*generate, "-o", "c.wav").refused(str(credentials.root), "self-signed")


def test_without_the_extra_detect_works_and_signing_says_what_is_missing(
    segue: Segue, write: Write, untrained: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "c2pa", None)
    path = write("a.wav", tone(1))
    done = segue("detect", path, "--detector", untrained)
    assert done.code == 0 and "signatures: not looked for without segue[provenance]" in done.out
    assert "signature" not in segue("detect", path, "--detector", untrained, "--json").json[0]
    done = segue("generate", "-p", tiny, "-o", "b.wav", "--sign", path, path)
    assert done.refused("needs c2pa-python", "pip install 'segue[provenance]'")
