"""The watermark: found where it is, after coding and resampling, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile
import torch
from torch import Tensor

from segue.core.audio import resample
from segue.inference.request import GeneratedAudio
from segue.plugins.provenance.spread import Watermark
from segue.plugins.provenance.watermark import MARKED, read_watermark, segue_after_generate

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def speech() -> Tensor:
    """Four seconds at 16 kHz."""
    wave, rate = soundfile.read(ROOT / "plugins/domains/speech/prompt.flac", dtype="float32")
    return resample(torch.from_numpy(wave), rate, 16_000).repeat(2)[:64_000]


def marked(wave: Tensor, prompt: int = 0, suffix: int = 0, start: int = 0) -> GeneratedAudio:
    """Pass audio through the hook."""
    lengths = torch.tensor([wave.shape[0]])
    audio = GeneratedAudio(
        wave[None], lengths, 16_000, torch.tensor([prompt]), {}, [()],
        {"start_sample": start},
        torch.tensor([suffix]) if suffix else None,
    )  # fmt: skip
    segue_after_generate(audio)
    return audio


def score(wave: Tensor, key: str = "segue") -> float:
    return Watermark(key).score(wave, 16_000)


def test_it_survives_mp3_and_resampling_and_is_not_found_elsewhere(
    speech: Tensor, tmp_path: Path
) -> None:
    audio = marked(speech)
    assert audio.metadata["watermark"] == "spread"
    path = tmp_path / "a.mp3"
    for wave, expected in ((audio.row(), True), (speech, False)):
        # 64 kbit/s of the 8 to 160 that MP3 offers at this rate
        mode = {"bitrate_mode": "CONSTANT", "compression_level": (160 - 64) / (160 - 8)}
        soundfile.write(path, wave.numpy(), 16_000, **mode)
        assert path.stat().st_size * 8 / 4 == pytest.approx(64_000, rel=0.05)
        coded = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
        halved = resample(resample(wave, 16_000, 8_000), 8_000, 16_000)
        for version in (wave, coded, halved, wave[5_000:], wave * 0.1):
            assert (score(version) > MARKED) == expected
    assert score(audio.row(), key="another") < MARKED
    residue = audio.row() - speech
    assert 16 < 10 * (speech.square().sum() / residue.square().sum()).log10() < 26  # decibels


def test_recordings_beside_what_is_new_stay_as_they_are(speech: Tensor, tmp_path: Path) -> None:
    audio = marked(speech, prompt=20_000, suffix=10_000)
    changed = (audio.row() != speech).nonzero()
    assert changed.min() >= 20_000 and changed.max() < 54_000
    path = tmp_path / "a.wav"
    joined = torch.cat([speech, marked(speech).row()])
    soundfile.write(path, joined.numpy(), 16_000)
    steps: list[tuple[str, int, int]] = []
    found = read_watermark(path, lambda *step: steps.append(step))
    assert [value is not None and value > MARKED for value in found][:3] == [False] * 3
    assert [value is not None and value > MARKED for value in found][5:] == [True] * 3
    assert steps[-1] == ("a.wav: watermark", 8, 8)


def test_a_key_of_ones_own_is_needed_to_find_it(
    speech: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGUE_WATERMARK_KEY", "mine")
    wave = marked(speech).row()
    assert score(wave, key="mine") > MARKED > score(wave)


def test_streamed_pieces_carry_on_one_pattern_and_short_pieces_are_left(speech: Tensor) -> None:
    sizes = [7_000, 9_000, 16_000, 16_000, 16_000]
    pieces, start = [], 0
    for piece in speech.split(sizes):
        pieces.append(marked(piece, start=start).row())
        start += len(piece)
    assert score(torch.cat(pieces)) > MARKED
    assert torch.equal(marked(speech[:1_000]).row(), speech[:1_000])


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100])
def test_other_sample_rates_are_marked(speech: Tensor, rate: int) -> None:
    wave = resample(speech, 16_000, rate)
    made = Watermark("segue").mark(wave, rate)
    assert made.shape == wave.shape
    assert Watermark("segue").score(made, rate) > MARKED


def test_silence_and_blips_have_no_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, torch.zeros(20_000).numpy(), 16_000)
    assert read_watermark(path) == [None]
    assert score(torch.rand(1_000)) == 0.0
