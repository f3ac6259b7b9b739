"""Voices, phones and distances of clouds."""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers_audio import RATE, melody, noise, record, speech_like, voice

from segue.core.audio import resample
from segue.core.errors import ConfigError, PluginError
from segue.core.plugins import PluginHost
from segue.plugins.domains.speech import DOMAIN
from segue.plugins.metrics import common
from segue.plugins.metrics.frechet import Frechet, frechet_distance
from segue.plugins.metrics.options import FrechetOptions
from segue.plugins.metrics.speaker import SpeakerEncoder, judged
from segue.sound.reading import read_audio

LOW, HIGH = (110.0, (400.0, 1100.0, 2400.0)), (220.0, (800.0, 1700.0, 3000.0))


def create(kind: Any, name: str) -> Any:
    try:
        return PluginHost.discover(entry_points=False).create(kind, name, {}, place=name)
    except PluginError as error:
        pytest.skip(str(error))


# --- speakers ---------------------------------------------------------------------------------


def test_voices_are_told_apart_and_swapped_ones_are_found() -> None:
    metric = create("continuation_metric", "speaker.v1")
    low, high = ([voice(*who, 3.0, seed) for seed in (1, 2, 3)] for who in (LOW, HIGH))
    kept = [record(low[0], low[1], low[2], "low"), record(high[0], high[1], high[2], "high")]
    swapped = [record(low[0], high[1], low[2], "low"), record(high[0], low[1], high[2], "high")]
    for right, wrong in zip(metric.measure(kept).rows, metric.measure(swapped).rows, strict=True):
        assert right["similarity"] > right["others"] + 0.1 and right["classified"] == 1
        assert right["above_others"] == 1 and right["truth_classified"] == 1
        assert wrong["similarity"] < right["similarity"] - 0.1
        assert wrong["classified"] == wrong["above_others"] == 0 and wrong["chance"] == 0.5
    alone = metric.measure([record(low[0], low[1])]).rows[0]
    assert math.isnan(alone["others"]) and math.isnan(alone["truth_similarity"])
    assert alone["similarity"] > 0.8
    silent = metric.measure([record(low[0], torch.zeros(RATE), group="a"), *kept]).rows[0]
    assert silent["similarity"] == silent["classified"] == silent["above_others"] == 0


def test_judgements_of_known_embeddings() -> None:
    prompts = torch.eye(4)
    speakers = torch.tensor([0, 0, 1, 2])
    found = judged(torch.tensor([0.6, 0.8, 0.3, 0.1]), prompts, speakers, 0)
    # The other prompt of the same speaker is neither a rival nor a help.
    assert found["similarity"] == pytest.approx(0.6) and found["classified"] == 1
    assert found["others"] == pytest.approx(0.2) and found["nearest_other"] == pytest.approx(0.3)
    found = judged(torch.tensor([0.2, 0.8, 0.3, 0.0]), prompts, speakers, 0)
    assert (found["classified"], found["above_others"]) == (0, 1)


def test_the_level_of_quiet_speech_makes_no_difference() -> None:
    create("continuation_metric", "speaker.v1")
    encode, wave = SpeakerEncoder(), 0.02 * voice(*LOW, 2.0)
    one, other = encode(wave, RATE), encode(0.1 * wave, RATE)
    assert one.norm() == pytest.approx(1, abs=1e-5) and float(one @ other) > 0.9999
    assert encode(torch.zeros(RATE), RATE).norm() == 0
    assert encode(wave[:800], RATE).norm() == pytest.approx(1, abs=1e-5)


def test_weights_that_are_missing_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "find_spec", lambda name: None)
    host = PluginHost.discover(entry_points=False)
    with pytest.raises(PluginError, match=r"resemblyzer.*pip install 'segue\[metrics\]'"):
        host.create("continuation_metric", "speaker.v1", {}, place="speaker.v1")


# --- phones -----------------------------------------------------------------------------------


def test_edits_are_counted_per_phone_of_the_reference() -> None:
    def error(*words: str) -> float:
        heard = iter(words)
        metric = common.TranscriptError()
        metric.recognise = lambda *_: next(heard)
        return metric(noise(1), noise(1), RATE)

    assert error("sitting", "kitten") == 3 / 7 and error("kitten", "sitting") == 3 / 6
    assert error("ab", "ba") == 1 and error("abc", "abc") == 0 and error("abc", "") == 1
    assert math.isnan(error("", "abc"))


def speech() -> list[torch.Tensor]:
    """Two halves of the recording that the package ships as a demo prompt."""
    recording = read_audio(DOMAIN.prompt)
    wave = resample(recording.wave, recording.sample_rate, RATE)
    return [wave[: len(wave) // 2], wave[len(wave) // 2 :]]


def test_phone_error_of_a_copy_of_noise_and_of_silence() -> None:
    metric = create("metric", "phone_error.v1")
    wave, other = speech()
    assert metric(wave, wave, RATE) == 0
    assert metric(wave, torch.zeros_like(wave), RATE) == 1
    assert math.isnan(metric(torch.zeros_like(wave), wave, RATE))
    assert metric(wave, wave + noise(len(wave) / RATE, level=0.001), RATE) < 0.3
    assert metric(wave, other, RATE) > 0.6
    assert not metric.higher_is_better


def test_phones_of_speech_of_noise_and_of_silence() -> None:
    metric = create("continuation_metric", "phones.v1")
    one, other = speech()
    swapped = [record(one, other, one, "a"), record(other, one, other, "b")]
    found, weights = metric.measure(swapped), torch.ones(2, dtype=torch.float64)
    for figure in ("phone_distance", "prompt_bigram_distance"):
        assert found.overall[figure](weights) == pytest.approx(0, abs=1e-12)
    # Without the second record, one half is held against the other.
    assert found.overall["bigram_distance"](torch.tensor([1.0, 0.0]).double()) > 0.3
    assert 4 < found.rows[0]["truth_phones_per_second"] < 20
    assert found.rows[0]["phones_per_second"] == found.rows[1]["truth_phones_per_second"]
    hiss = metric.measure([record(one, noise(2), one, "a")]).rows[0]
    assert hiss["phones_per_second"] < 0.3 * hiss["truth_phones_per_second"]
    found = metric.measure([record(one, torch.zeros(RATE), other, "a")])
    assert found.rows[0]["phones_per_second"] == 0 and math.isnan(found.rows[0]["different"])
    assert math.isnan(found.overall["phone_distance"](torch.ones(1, dtype=torch.float64)))


def test_phones_and_when_they_are_heard() -> None:
    pytest.importorskip("hama")
    from segue.plugins.metrics.phones import PhoneRecogniser

    recogniser, wave = PhoneRecogniser(), speech()[0]
    spans = recogniser.spans(wave, RATE)
    assert [span.label for span in spans] == recogniser(wave, RATE)
    assert all(0 <= a.start < a.end <= b.start for a, b in pairwise(spans))
    assert spans[-1].end <= len(wave) / RATE + 0.1
    assert recogniser.spans(torch.zeros(100), RATE) == []


def test_triphones_are_three_phones_in_a_row() -> None:
    from segue.plugins.metrics.phones import Phone, triphones

    row = [Phone("a", 0.0, 0.1), Phone("b", 0.1, 0.2), Phone("c", 0.2, 0.3), Phone("d", 0.4, 0.5)]
    assert list(triphones(row)) == [(Phone("b", 0.0, 0.3), "a c")]  # a gap before the last one
    assert list(triphones([row[0], row[1], Phone("c", 0.2, 0.9)])) == []  # a pause in it
    assert list(triphones(row[:2])) == []


def test_a_recogniser_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hama", None)
    for loaded in [name for name in sys.modules if name.startswith("segue.plugins.metrics.phones")]:
        monkeypatch.delitem(sys.modules, loaded)
    host = PluginHost.discover(entry_points=False)
    with pytest.raises(PluginError, match=r"extra 'metrics'.*pip install 'segue\[metrics\]'"):
        host.create("continuation_metric", "phones.v1", {}, place="phones.v1")


# --- naturalness ------------------------------------------------------------------------------


def test_opinions_of_speech_of_noise_and_of_silence() -> None:
    metric = create("continuation_metric", "naturalness.v1")
    one, _ = speech()
    noisy = one + noise(len(one) / RATE, level=0.03)[: len(one)]
    found = metric.measure([record(one, one, noisy), record(one, torch.zeros(RATE))]).rows
    assert found[0]["overall"] > found[0]["truth_overall"] + 0.3
    assert found[0]["background"] > found[0]["truth_background"] + 0.5
    assert 1 < found[0]["truth_signal"] < found[0]["signal"] < 5
    assert math.isnan(found[1]["overall"]) and math.isnan(found[1]["truth_overall"])
    # Shorter audio is repeated, so that twice the same is the same.
    twice = metric.measure([record(one, one[:RATE].repeat(2))]).rows[0]
    once = metric.measure([record(one, one[:RATE])]).rows[0]
    assert twice["overall"] == pytest.approx(once["overall"], abs=1e-4)


# --- Fréchet distance -------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "width"), [(4000, 3), (6, 8)])
def test_distances_of_known_clouds(rows: int, width: int) -> None:
    random = torch.Generator().manual_seed(0)
    cloud = torch.randn(rows, width, generator=random, dtype=torch.float64)
    ones = torch.ones(rows, dtype=torch.float64)
    assert frechet_distance(cloud, ones, cloud, ones) == pytest.approx(0, abs=1e-9)
    moved = frechet_distance(cloud, ones, cloud + 2, ones)
    assert moved == pytest.approx(4 * width)
    # Twice as wide: (2 - 1)² of the trace of the covariance.
    centred = cloud - cloud.mean(0)
    wider = frechet_distance(centred, ones, 2 * centred, ones)
    assert wider == pytest.approx(float(centred.square().sum() / (rows - 1)))


def test_the_distance_is_that_of_the_formula_with_a_root() -> None:
    random = torch.Generator().manual_seed(1)
    a, b = (torch.randn(50, 5, generator=random, dtype=torch.float64) for _ in range(2))
    b = b @ torch.randn(5, 5, generator=random, dtype=torch.float64)
    covariances = [torch.cov(rows.T) for rows in (a, b)]
    roots = torch.linalg.eigvals(covariances[0] @ covariances[1]).sqrt().real.sum()
    trace = covariances[0].trace() + covariances[1].trace() - 2 * roots
    expected = float((a.mean(0) - b.mean(0)).square().sum() + trace)
    ones = torch.ones(50, dtype=torch.float64)
    assert frechet_distance(a, ones, b, ones) == pytest.approx(expected)
    doubled = torch.cat([a, a[:1]])
    weights = ones.clone()
    weights[0] = 2
    same = frechet_distance(doubled, torch.ones(51, dtype=torch.float64), b, ones)
    assert frechet_distance(a, weights, b, ones) == pytest.approx(same)


def test_like_sounds_are_near_and_unlike_ones_far() -> None:
    real = [speech_like(4, seed) for seed in range(6)]
    like = [record(real[i], speech_like(4, 10 + i), real[i], str(i)) for i in range(6)]
    unlike = [record(real[i], melody((60, 64, 67, 72) * 2), real[i], str(i)) for i in range(6)]
    weights = torch.ones(6, dtype=torch.float64)
    near, far = (Frechet(FrechetOptions()).measure(records) for records in (like, unlike))
    assert near.overall["distance"](weights) < 0.1 * far.overall["distance"](weights)
    assert near.overall["prompt_distance"](weights) == pytest.approx(0, abs=1e-9)
    assert near.rows[0]["pieces"] == 7  # 4 s in pieces of 0.96 s, half overlapping
    short = Frechet(FrechetOptions()).measure([record(real[0], real[0][:1000])])
    assert math.isnan(short.overall["distance"](torch.ones(1, dtype=torch.float64)))


def test_options_of_the_distance(tmp_path: object) -> None:
    host = PluginHost.discover(entry_points=False)
    for options in ({"embedding": "yamnet"}, {"weights": "a.tflite"}, {"embedding": "vggish"}):
        with pytest.raises(ConfigError):
            host.options("continuation_metric", "frechet.v1", options, "frechet.v1.options")
    pytest.importorskip("ai_edge_litert")
    absent = {"embedding": "yamnet", "weights": f"{tmp_path}/none.tflite"}
    with pytest.raises(ConfigError, match="weights:"):
        host.create("continuation_metric", "frechet.v1", absent, place="frechet.v1")
