"""Figures that say what they should of signals of which the answer is known."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soundfile
import torch

from segue.core.config.schema import PromptConfig
from segue.core.data.recordings import Recording
from segue.core.errors import DataError
from segue.core.evaluation import evaluate
from segue.core.evaluation.evaluate import (
    evaluate_continuations,
    evaluate_likelihood,
    health,
)
from segue.core.evaluation.statistics import (
    bootstrap_interval,
    entropy,
    estimate,
    mutual_information,
    summarise,
)
from segue.core.interfaces import StageBatch, Tokens
from segue.plugins.metrics.log_mel.metric import LogMelDistance
from segue.plugins.metrics.si_sdr.metric import SiSdr

RATE = 16_000


def noise(seconds: float = 2.0, seed: int = 0, level: float = 0.1) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return level * torch.randn(round(seconds * RATE), generator=random)


def speech_like(seconds: float = 8.0, seed: int = 0) -> torch.Tensor:
    """Noise whose loudness changes every 50 ms, at random."""
    random = torch.Generator().manual_seed(seed + 1)
    loudness = torch.rand(round(seconds * 20), generator=random).repeat_interleave(RATE // 20)
    return noise(seconds, seed) * loudness


# --- statistics -------------------------------------------------------------------------------


def test_an_estimate_has_a_normal_interval() -> None:
    found = estimate([1.0, 2.0, 3.0, 4.0, 10.0])
    error = 1.96 * math.sqrt(12.5 / 5)
    assert found.mean == 4.0 and found.count == 5
    assert found.low == pytest.approx(4 - error) and found.high == pytest.approx(4 + error)
    assert (found.lowest, found.highest) == (1.0, 10.0)
    assert str(found) == f"4.000 [{4 - error:.3f}, {4 + error:.3f}]"


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    random = torch.Generator().manual_seed(0)
    draws = torch.randn(2000, 40, generator=random) * 3 + 7
    covered = 0
    for row in draws.tolist():
        found = estimate(row)
        covered += found.low <= 7 <= found.high
    assert 0.925 < covered / 2000 < 0.965


def test_one_value_is_its_own_interval() -> None:
    found = estimate([2.5])
    assert (found.mean, found.low, found.high, found.count) == (2.5, 2.5, 2.5, 1)


def test_a_summary_has_every_column_and_goes_into_json() -> None:
    rows = [{"a": 1.0, "b": -1.0}, {"a": 3.0, "b": -1.0}]
    found = json.loads(json.dumps(summarise(rows)))
    assert found["a"]["mean"] == 2.0 and found["b"]["low"] == found["b"]["high"] == -1.0
    assert found["a"]["count"] == 2


def test_what_is_no_number_is_left_out_and_counted() -> None:
    found = summarise(
        [{"a": 1.0, "b": math.nan}, {"a": math.nan, "b": math.inf}, {"a": 4.0, "b": math.nan}]
    )
    assert found["a"]["mean"] == 2.5 and found["a"]["count"] == 2 and found["a"]["left_out"] == 1
    assert found["b"]["mean"] is None and (found["b"]["count"], found["b"]["left_out"]) == (0, 3)
    assert "left_out" not in summarise([{"a": 1.0}])["a"]
    json.dumps(found, allow_nan=False)


def test_a_bootstrap_interval_of_a_mean_is_about_the_normal_one() -> None:
    values = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high = bootstrap_interval(lambda w: float((w @ values) / w.sum()), 200, draws=2000)
    normal = estimate(values.tolist())
    assert low == pytest.approx(normal.low, abs=0.02) and high == pytest.approx(
        normal.high, abs=0.02
    )
    again = bootstrap_interval(lambda w: float((w @ values) / w.sum()), 200, draws=2000)
    assert again == (low, high)


def test_figures_that_some_draws_lack() -> None:
    low, high = bootstrap_interval(lambda w: 1.0 if w[0] else math.nan, 2)
    assert (low, high) == (1.0, 1.0)
    assert all(math.isnan(end) for end in bootstrap_interval(lambda w: math.nan, 2))


def test_information_of_known_tables() -> None:
    assert entropy(torch.tensor([1, 1, 1, 1])) == pytest.approx(2)
    assert entropy(torch.tensor([3.0, 0.0])) == 0
    assert mutual_information(torch.eye(8)) == pytest.approx(3)  # each tells the other
    assert mutual_information(torch.ones(5, 7)) == pytest.approx(0)
    # A channel that flips one bit in four: 1 - H(1/4).
    flips = torch.tensor([[3.0, 1.0], [1.0, 3.0]])
    expected = 1 + 0.25 * math.log2(0.25) + 0.75 * math.log2(0.75)
    assert mutual_information(flips) == pytest.approx(expected)
    assert mutual_information(100 * flips) == pytest.approx(expected)


# --- health -----------------------------------------------------------------------------------


def test_a_healthy_continuation() -> None:
    found = health(speech_like(3, seed=1), speech_like(8, seed=2), RATE)
    assert abs(found["level_ratio_db"]) < 1.5
    assert found["clipped"] == 0 and found["silent"] < 0.05
    assert found["spectrum_distance"] < 0.1 and found["loop"] < 0.5


def test_silence_is_seen() -> None:
    half = torch.cat([speech_like(2), torch.zeros(2 * RATE)])
    assert health(speech_like(3), half, RATE)["silent"] == pytest.approx(0.5, abs=0.03)
    assert health(speech_like(3), noise(3, level=1e-4), RATE)["silent"] == 1
    assert health(speech_like(3), noise(3, level=0.01), RATE)["silent"] == 0
    found = health(speech_like(3), torch.zeros(4 * RATE), RATE)
    assert found["silent"] == 1 and found["level_ratio_db"] < -60
    assert found["loop"] == 0 and found["spectrum_distance"] > 2


def test_clipping_is_seen() -> None:
    loud = (100 * noise(4)).clamp(-1, 1)
    found = health(noise(2), loud, RATE)
    assert found["clipped"] > 0.9 and found["level_ratio_db"] > 15
    quarter = torch.cat([noise(3), torch.ones(RATE)])
    assert health(noise(2), quarter, RATE)["clipped"] == pytest.approx(0.25)


@pytest.mark.parametrize("period", [0.25, 1.0, 1.7])
def test_a_loop_is_seen(period: float) -> None:
    piece = speech_like(period, seed=3)
    found = health(speech_like(3), piece.repeat(round(8 / period)), RATE)
    assert found["loop"] > 0.7


def test_a_change_of_level_is_measured_in_decibels() -> None:
    wave = speech_like(3)
    assert health(wave, 2 * wave, RATE)["level_ratio_db"] == pytest.approx(6.02, abs=0.01)
    assert health(wave, 0.1 * wave, RATE)["level_ratio_db"] == pytest.approx(-20, abs=0.01)


def test_a_change_of_sound_is_measured_in_decades() -> None:
    wave = noise(4)
    same = health(wave, noise(4, seed=5), RATE)["spectrum_distance"]
    louder = health(wave, 10 * noise(4, seed=5), RATE)["spectrum_distance"]
    dull = torch.nn.functional.avg_pool1d(wave[None], 16, 1)[0]
    assert same < 0.05 and louder == pytest.approx(1, abs=0.05)
    assert health(wave, dull, RATE)["spectrum_distance"] > 0.5


def test_the_shortest_continuations_have_figures() -> None:
    found = health(noise(0.5), noise(0.04), RATE)
    assert all(math.isfinite(value) for value in found.values())


# --- metrics ----------------------------------------------------------------------------------


def test_log_mel_distance_of_known_pairs() -> None:
    metric, wave = LogMelDistance(), noise()
    assert metric(wave, wave, RATE) == 0
    assert metric(wave, 10 * wave, RATE) == pytest.approx(1.0, abs=1e-4)
    assert metric(wave, -wave, RATE) == pytest.approx(0, abs=1e-6)
    assert metric(wave, 0.5 * wave, RATE) == pytest.approx(math.log10(2), abs=1e-4)
    assert metric(torch.zeros(RATE), torch.zeros(RATE), RATE) == 0
    other = noise(seed=3)
    assert metric(wave, other, RATE) == pytest.approx(metric(other, wave, RATE))
    assert 0.05 < metric(wave, other, RATE) < 0.5
    assert not metric.higher_is_better and metric.unit == "log10"


def test_log_mel_distance_means_the_same_at_another_rate() -> None:
    metric, wave = LogMelDistance(), noise(3)
    assert metric(wave, 10 * wave, 24_000) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("decibels", [-10.0, 0.0, 10.0, 30.0])
def test_si_sdr_is_the_ratio_that_was_mixed(decibels: float) -> None:
    wave, other = noise(8, seed=1), noise(8, seed=2)
    other = other - other.mean()
    centred = wave - wave.mean()
    other = other - (other @ centred) / (centred @ centred) * centred
    gain = float(centred.norm() / other.norm()) * 10 ** (-decibels / 20)
    metric = SiSdr()
    assert metric(wave, wave + gain * other, RATE) == pytest.approx(decibels, abs=0.01)
    # Neither the scale nor a constant makes a difference.
    shifted = 0.3 * (wave + gain * other) + 0.7
    assert metric(wave, shifted, RATE) == pytest.approx(decibels, abs=0.05)
    assert metric(5 * wave, wave + gain * other, RATE) == pytest.approx(decibels, abs=0.01)


def test_si_sdr_at_its_ends() -> None:
    metric, wave = SiSdr(), noise()
    assert metric(wave, wave, RATE) > 60
    assert metric(wave, noise(seed=9), RATE) < -20
    assert metric.higher_is_better and metric.unit == "dB"


def test_si_sdr_of_silence() -> None:
    metric, wave = SiSdr(), noise()
    for silence in (torch.zeros_like(wave), torch.full_like(wave, 0.5), 1e-5 * wave):
        assert math.isnan(metric(silence, wave, RATE))  # nothing to measure
        assert metric(wave, silence, RATE) == -60
    # Noise that has next to nothing of the reference is no worse than silence.
    other, centred = noise(seed=9), wave - wave.mean()
    other = other - other.mean()
    other = other - (other @ centred) / (centred @ centred) * centred
    assert metric(wave, other, RATE) == -60


# --- evaluating a pipeline --------------------------------------------------------------------


class Result:
    def __init__(self, wave: torch.Tensor, prompt: int) -> None:
        self.wave, self.prompt_samples = wave, torch.tensor([prompt])

    def row(self) -> torch.Tensor:
        return self.wave

    def continuation(self) -> torch.Tensor:
        return self.wave[int(self.prompt_samples[0]) :]


class FakePipeline:
    """Its continuation is the prompt's end, halved."""

    sample_rate = RATE
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.config = SimpleNamespace(
            prompt=PromptConfig(min_seconds=0.5, max_seconds=2.0),
            stages=[SimpleNamespace(name="coarse", crop_seconds=1.0)],
        )
        self.prompts: list[int] = []

    def continue_(self, wave: torch.Tensor, rate: int, *, seconds: float, seed: int) -> Result:
        self.prompts.append(wave.shape[0])
        added = 0.5 * wave[-round(seconds * rate) :]
        return Result(torch.cat([wave, added]), wave.shape[0])

    def stage_lm(self, name: str) -> Any:
        assert name == "coarse"
        stage = SimpleNamespace(target=SimpleNamespace(frame_rate=Fraction(50)))
        return SimpleNamespace(stage=stage, score=fake_score)


def fake_score(batch: StageBatch) -> torch.Tensor:
    """Level q has -1 - q nats everywhere; padding is not to count."""
    levels = -1.0 - torch.arange(batch.target.num_levels)
    score = levels[None, :, None].expand(batch.target.ids.shape).clone()
    return score.masked_fill(~batch.target.mask[:, None], -99.0)


@pytest.fixture
def recordings(tmp_path: Path) -> list[Recording]:
    """Two that can be used, four that cannot."""
    waves = {"good": noise(3.0, 1), "other": noise(1.0, 2), "short": noise(0.2, 3)}
    waves["nan"] = torch.full((RATE,), math.nan)
    for name, wave in waves.items():
        soundfile.write(tmp_path / f"{name}.wav", wave.numpy(), RATE, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("no audio")
    names = ["good", "short", "nan", "text", "missing", "other"]
    return [Recording(tmp_path / f"{name}.wav", 1.0, name, "valid") for name in names]


def test_continuations_are_evaluated_on_what_can_be_read(recordings: list[Recording]) -> None:
    pipeline = FakePipeline()
    found = evaluate_continuations(
        pipeline,  # type: ignore[arg-type]
        recordings,
        prompt_seconds=1.5,
        seconds=1.0,
        seed=0,
    )
    assert pipeline.prompts == [24_000, 16_000]
    assert found["level_ratio_db"]["count"] == 2
    assert found["level_ratio_db"]["mean"] == pytest.approx(-6.02, abs=0.2)
    assert found["silent"]["highest"] == 0


def test_no_usable_recording_is_an_error(recordings: list[Recording]) -> None:
    useless = recordings[1:5]
    with pytest.raises(DataError, match="recordings: none can be used; check the data"):
        evaluate_continuations(
            FakePipeline(),  # type: ignore[arg-type]
            useless,
            prompt_seconds=1,
            seconds=1,
            seed=0,
        )


def test_likelihood_is_per_level_and_without_padding(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Crops:
        def __init__(self, *arguments: object, **named: object) -> None:
            pass

        def batch(self, index: int) -> StageBatch:
            return StageBatch(Tokens(torch.zeros(2, 3, 8, dtype=torch.long), torch.tensor([8, 3])))

    monkeypatch.setattr(evaluate, "TokenStore", lambda directory, split: (directory, split))
    monkeypatch.setattr(evaluate, "TokenCrops", Crops)
    found = evaluate_likelihood(FakePipeline(), tmp_path, 3)  # type: ignore[arg-type]
    assert {level: e["mean"] for level, e in found["coarse"].items()} == pytest.approx(
        {"level_0": 1.0, "level_1": 2.0, "level_2": 3.0, "bits_per_second": 50 * 6 / math.log(2)}
    )
    assert found["coarse"]["level_0"]["count"] == 3
