"""The spectral detector: what its contract promises, learning, saving, and the shipped weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import soundfile
import torch
from pytest import MonkeyPatch
from tests.conftest import Install, WriteDistribution, registering

from segue.core.audio import Audio, write_audio
from segue.core.checkpoint_files import MANIFEST
from segue.core.errors import AudioError, CheckpointError, DataError
from segue.core.interfaces import Detector
from segue.core.plugins import PluginHost
from segue.data.origin_clips import Clip
from segue.evaluation.detector import DISTURBANCES, disturbances, evaluate_detector
from segue.inference.detection import judge, judge_file, shipped
from segue.plugins.detectors import spectral
from segue.plugins.detectors.spectral.config import SpectralDetectorOptions
from segue.plugins.detectors.spectral.model import SpectralDetector
from segue.sound.reading import read_audio
from segue.training.detector import detector_training, train_detector

RATE = 16_000
TINY = {"channels": (4, 6, 8), "bands": 24}


@pytest.fixture
def detector() -> SpectralDetector:
    torch.manual_seed(0)
    return SpectralDetector(SpectralDetectorOptions.model_validate(TINY)).eval()


def noise(seconds: float, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(round(seconds * RATE), generator=random)


def clip(seed: int, group: str, tested: bool) -> Clip:
    """Noise, noise below 2 kHz, and a tone with noise: three origins anyone can tell apart."""
    real = noise(2.5, seed)
    spectrum = torch.fft.rfft(real)
    spectrum[5000:] = 0
    coded = torch.fft.irfft(spectrum, real.shape[0])
    time = torch.arange(real.shape[0]) / RATE
    generated = 0.3 * torch.sin(2 * torch.pi * (300 + 20 * seed) * time) + 0.1 * real
    waves = torch.stack([real, coded, generated]).clamp(-1, 1)
    return Clip((waves * 32767).to(torch.int16), group, tested, unseen=tested)


@pytest.mark.slow
def test_it_learns_and_is_measured_on_groups_it_has_not_heard(
    detector: SpectralDetector, tmp_path: Path
) -> None:
    clips = [clip(i, f"group {i}", tested=i % 3 == 0) for i in range(9)]
    before = evaluate_detector(detector, clips)["figures"]["generated against real"]["mean"]
    training = detector_training(steps=80, learning_rate=1e-2, seed=0)
    host, use = PluginHost.discover(entry_points=False), "spectral_detector.v1"
    last = train_detector(detector, use, clips, training, tmp_path, host)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").open(encoding="utf-8")]
    report = evaluate_detector(detector, clips)
    assert list(report["disturbed"]) == list(DISTURBANCES)
    quieter = report["disturbed"]["20 dB quieter"]["generated against real"]
    assert quieter["mean"] == report["figures"]["generated against real"]["mean"]
    figure = report["figures"]["generated against real"]
    assert losses[-1] < losses[0] and report["items"] == 3 == report["unseen_items"]
    assert figure["mean"] == 1.0 > before
    assert 0.4 < figure["low"] < 0.5  # three groups without a mistake prove little
    twin = SpectralDetector(detector.config)
    with pytest.raises(DataError, match="too few groups"):
        train_detector(twin, use, [clip(0, "a", tested=False)], training, tmp_path, host)
    for other in ((80, 1e-3), (40, 1e-2)):
        with pytest.raises(CheckpointError, match="was trained with"):
            changed = detector_training(*other, seed=0)
            train_detector(twin, use, clips, changed, tmp_path, host)
    # Stopped after the last checkpoint but one, it goes on to the same weights.
    shutil.rmtree(last)
    assert train_detector(twin, use, clips, training, tmp_path, host) == last
    pairs = zip(twin.parameters(), detector.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in pairs)


@pytest.mark.parametrize("error", [ValueError, soundfile.LibsndfileError])
def test_disturbances_that_cannot_be_had_are_left_out(
    detector: SpectralDetector, monkeypatch: MonkeyPatch, error: type[Exception]
) -> None:
    """As with a libsndfile that knows no MP3."""
    write = soundfile.write

    def old(file: object, *rest: object, format: str, **named: object) -> None:
        if format == "MP3":
            raise error(1)
        write(file, *rest, format=format, **named)

    assert disturbances(RATE) == (DISTURBANCES, {})
    monkeypatch.setattr(soundfile, "write", old)
    report = evaluate_detector(detector, [clip(0, "a", tested=True)])
    assert list(report["disturbed"]) == [name for name in DISTURBANCES if name != "MP3"]
    assert list(report["left_out"]) == ["MP3"]
    assert "libsndfile cannot write it at 16000 Hz" in report["left_out"]["MP3"]


def test_disturbances_keep_length_and_most_of_the_sound() -> None:
    time = torch.arange(RATE) / RATE
    low = 0.3 * torch.sin(2 * torch.pi * 440 * time)
    high = 0.3 * torch.sin(2 * torch.pi * 6000 * time)
    made = {name: disturb(low + high, RATE) for name, disturb in DISTURBANCES.items()}
    assert all(wave.shape == low.shape and wave.isfinite().all() for wave in made.values())

    def share(wave: torch.Tensor, hertz: int) -> float:
        return float(torch.fft.rfft(wave).abs()[hertz] / torch.fft.rfft(low).abs()[440])

    assert all(share(made[name], 440) == pytest.approx(1, abs=0.1) for name in list(made)[:4])
    assert share(made["4 kHz band"], 6000) < 0.01 < share(made["MP3"], 6000)
    assert share(made["20 dB quieter"], 440) == pytest.approx(0.1, rel=1e-3)
    noise = made["20 dB noise"] - low - high
    assert float(noise.std() / (low + high).std()) == pytest.approx(0.1, rel=0.05)


class Loud(Detector):
    """Takes what has a tone of more than 0.5 for generated."""

    def score(self, wave: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        made = (wave.abs().amax(dim=1) > 0.5).float()
        return torch.stack([1 - made, torch.zeros_like(made), made], dim=1)


def test_a_continued_recording_is_told_by_its_seconds() -> None:
    from segue.core.options import DetectorOptions

    loud = Loud(DetectorOptions(window_seconds=1.0))
    prompt, made = torch.full((8 * RATE,), 0.1), torch.full((3 * RATE,), 0.9)
    judged = judge(loud, Audio(torch.cat([prompt, made]), RATE))
    assert judged.verdict == "partly generated"
    assert judged.seconds[:, 2].tolist() == [0.0] * 8 + [1.0] * 3
    assert judged.probability["generated"] == pytest.approx(3 / 11)
    assert judge(loud, Audio(prompt, RATE)).verdict == "real"
    assert judge(loud, Audio(torch.cat([prompt[:RATE], made]), RATE)).verdict == "generated"
    silence = torch.zeros(2 * RATE)
    half = judge(loud, Audio(torch.cat([silence, made]), RATE))
    assert half.verdict == "generated" and half.seconds[0].isnan().all()
    with pytest.raises(AudioError, match="is silent"):
        judge(loud, Audio(silence, RATE))
    with pytest.raises(AudioError, match=r"lasts 0\.250 s"):
        judge(loud, Audio(prompt[: RATE // 4], RATE))


def test_plugins_neither_replace_nor_disable_the_shipped_detector(
    install: Install, write_distribution: WriteDistribution
) -> None:
    """One has weights for speech and a name that sorts first, the other cannot be imported."""
    targets = {"a_claims.v1": "a_claims:A", "b_fails.v1": "b_fails:A"}
    source = registering("detector", targets)
    folder = write_distribution("segue_odd", source, "[segue.plugins]\nmain = segue_odd\n")
    (folder / "a_claims.py").touch()
    (folder / "b_fails.py").write_text("1 / 0\n")
    manifest = folder / "pretrained" / "speech" / MANIFEST
    manifest.parent.mkdir(parents=True)
    manifest.touch()
    install(folder)
    host = PluginHost.discover()
    assert shipped("speech", host).is_relative_to(Path(spectral.__file__).parent)
    with pytest.raises(CheckpointError, match="there are: piano, speech"):
        shipped("whales", host)


def test_a_domain_without_a_detector_is_told() -> None:
    with pytest.raises(CheckpointError, match="no detector ships weights for it"):
        shipped("whales", PluginHost.discover(entry_points=False))


def test_a_file_is_judged_as_the_same_audio_is(detector: SpectralDetector, tmp_path: Path) -> None:
    """More seconds than are judged together, some of them silent, at another rate."""
    time = torch.arange(70 * 8000) / 8000
    wave = 0.3 * torch.sin(time * time * 40) * ((time < 20) | (time > 33))
    write_audio(tmp_path / "a.flac", wave, 8000)
    whole = judge(detector, read_audio(tmp_path / "a.flac"))
    part = judge_file(detector, tmp_path / "a.flac")
    assert part.seconds.isnan().equal(whole.seconds.isnan()) and bool(part.seconds.isnan().any())
    torch.testing.assert_close(part.seconds, whole.seconds, equal_nan=True, atol=1e-4, rtol=0)
    assert part.verdict == whole.verdict
