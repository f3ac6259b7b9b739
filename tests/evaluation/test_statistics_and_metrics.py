"""Figures that say what they should of signals of which the answer is known."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from segue.core.interfaces import Metric, StageBatch, Tokens
from segue.evaluation import likelihood
from segue.evaluation.failures import figures_of_pair
from segue.evaluation.likelihood import evaluate_likelihood
from segue.evaluation.statistics import (
    bootstrap_interval,
    entropy,
    estimate,
    grouped_summary,
    jackknife_interval,
    mutual_information,
    summarise,
)
from segue.plugins.layers.distributions import jensen_shannon
from segue.plugins.metrics.quality import LogMelDistance, SiSdr

RATE = 16_000


def noise(seconds: float = 2.0, seed: int = 0, level: float = 0.1) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return level * torch.randn(round(seconds * RATE), generator=random)


# --- statistics -------------------------------------------------------------------------------


def test_an_estimate_has_a_normal_interval() -> None:
    found = estimate([1.0, 2.0, 3.0, 4.0, 10.0])
    error = 1.96 * math.sqrt(12.5 / 5)
    assert found["mean"] == 4.0 and found["count"] == 5
    assert found["low"] == pytest.approx(4 - error) and found["high"] == pytest.approx(4 + error)
    assert (found["lowest"], found["highest"]) == (1.0, 10.0)


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    random = torch.Generator().manual_seed(0)
    draws = torch.randn(2000, 40, generator=random) * 3 + 7
    covered = 0
    for row in draws.tolist():
        found = estimate(row)
        assert found["low"] is not None and found["high"] is not None
        covered += found["low"] <= 7 <= found["high"]
    assert 0.925 < covered / 2000 < 0.965


def test_one_value_has_no_interval() -> None:
    found = estimate([2.5])
    assert (found["mean"], found["low"], found["high"], found["count"]) == (2.5, None, None, 1)
    assert (found["lowest"], found["highest"]) == (2.5, 2.5)


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
    assert low == pytest.approx(normal["low"], abs=0.02) and high == pytest.approx(
        normal["high"], abs=0.02
    )
    again = bootstrap_interval(lambda w: float((w @ values) / w.sum()), 200, draws=2000)
    assert again == (low, high)


def test_figures_that_some_draws_lack() -> None:
    low, high = bootstrap_interval(lambda w: 1.0 if w[0] else math.nan, 2)
    assert (low, high) == (1.0, 1.0)
    assert bootstrap_interval(lambda w: math.nan, 2) == (None, None)


def test_a_summary_over_groups_has_their_interval_and_number() -> None:
    # Ten items of two groups that differ: items alone would look surer than they are.
    rows = [{"a": float(index >= 5), "b": math.nan} for index in range(10)]
    groups = ["one"] * 5 + ["two"] * 5
    found = grouped_summary(rows, groups)["a"]
    assert (found["mean"], found["groups"], found["count"]) == (0.5, 2, 10)
    assert (found["low"], found["high"]) == (0.0, 1.0)
    apart = grouped_summary(rows, [str(index) for index in range(10)])["a"]
    assert 0.1 < apart["low"] < 0.5 < apart["high"] < 0.9
    alone = grouped_summary(rows, ["one"] * 10)
    assert (alone["a"]["low"], alone["a"]["high"], alone["a"]["groups"]) == (None, None, 1)
    assert (alone["b"]["mean"], alone["b"]["count"], alone["b"]["left_out"]) == (None, 0, 10)


def test_groups_whose_items_are_all_left_out_do_not_count() -> None:
    rows = [{"a": 1.0}, {"a": 3.0}, {"a": math.nan}]
    found = grouped_summary(rows, ["one", "two", "three"])["a"]
    assert (found["mean"], found["groups"], found["left_out"]) == (2.0, 2, 1)
    assert (found["low"], found["high"]) == (1.0, 3.0)


def test_a_jackknife_interval_of_a_mean_is_the_normal_one() -> None:
    values = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = jackknife_interval(lambda w: float((w @ values) / w.sum()), 50)
    normal = estimate(values.tolist())
    assert found == pytest.approx((normal["low"], normal["high"]))
    for groups, figure in ((1, 1.0), (3, math.nan)):
        assert jackknife_interval(lambda w, f=figure: f, groups) == (None, None)


def test_divergence_of_known_distributions() -> None:
    a = torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert jensen_shannon(a, 7 * a) == pytest.approx(0, abs=1e-12)
    assert jensen_shannon(a, a.flip(0)) == pytest.approx(1)
    # Half in common: the mixture is (1/4, 1/2, 1/4), of 1.5 bits; each side has 1.
    assert jensen_shannon(a, torch.tensor([0.0, 3.0, 3.0, 0.0])) == pytest.approx(0.5)
    assert math.isnan(jensen_shannon(a, torch.zeros(4)))


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


class FakePipeline:
    """It has one stage of three levels."""

    sample_rate = RATE
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.config = SimpleNamespace(
            stages=[SimpleNamespace(name="coarse", crop_seconds=1.0)],
        )

    def stage_lm(self, name: str) -> Any:
        assert name == "coarse"
        stage = SimpleNamespace(target=SimpleNamespace(frame_rate=Fraction(50)))
        return SimpleNamespace(stage=stage, score=fake_score)


def fake_score(batch: StageBatch) -> torch.Tensor:
    """Level q has -1 - q nats everywhere; padding is not to count."""
    levels = -1.0 - torch.arange(batch.target.num_levels)
    score = levels[None, :, None].expand(batch.target.ids.shape).clone()
    return score.masked_fill(~batch.target.mask[:, None], -99.0)


def test_likelihood_is_per_level_and_without_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    class Crops:
        def __init__(self, *arguments: object, **named: object) -> None:
            pass

        def batch(self, index: int) -> StageBatch:
            return StageBatch(Tokens(torch.zeros(2, 3, 8, dtype=torch.long), torch.tensor([8, 3])))

    monkeypatch.setattr(likelihood, "TokenCrops", Crops)
    found = evaluate_likelihood(FakePipeline(), None, 3)  # type: ignore[arg-type]
    assert {level: e["mean"] for level, e in found["coarse"].items()} == pytest.approx(
        {"level_0": 1.0, "level_1": 2.0, "level_2": 3.0, "bits_per_second": 50 * 6 / math.log(2)}
    )
    assert found["coarse"]["level_0"]["count"] == 3


def test_a_metric_that_writes_to_its_audio_spoils_no_other_figure() -> None:
    class Writes(Metric):
        def __call__(self, reference: torch.Tensor, audio: torch.Tensor, rate: int) -> float:
            return float(reference.mul_(0).sum() + audio.mul_(0).sum())

    class Sums(Metric):
        def __call__(self, reference: torch.Tensor, audio: torch.Tensor, rate: int) -> float:
            return float(reference.sum() + audio.sum())

    wave = torch.ones(4)
    found = figures_of_pair({"writes": Writes(), "sums": Sums()}, wave, wave, 16_000, {})
    assert found == {"writes": 0.0, "sums": 8.0} and wave.sum() == 4
