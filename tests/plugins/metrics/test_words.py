"""Words that recognisers hear, and opinions of speech."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_audio import RATE, noise, record

from segue.core.audio import resample
from segue.core.errors import ConfigError, PluginError
from segue.core.plugins import PluginHost
from segue.plugins.domains.speech import DOMAIN
from segue.sound.reading import read_audio


def create(kind: Any, name: str, options: dict[str, Any] | None = None) -> Any:
    try:
        return PluginHost.discover(entry_points=False).create(kind, name, options or {}, place=name)
    except PluginError as error:
        pytest.skip(str(error))


def speech() -> torch.Tensor:
    recording = read_audio(DOMAIN.prompt)
    return resample(recording.wave, recording.sample_rate, RATE)


def test_words_of_a_text() -> None:
    pytest.importorskip("faster_whisper")
    from segue.plugins.metrics.words import words

    assert words("It's 3 o’clock -- Mr. Toad SAID, 'No!'") == [
        "it's", "3", "o'clock", "mr", "toad", "said", "no",
    ]  # fmt: skip


def test_figures_of_what_two_recognisers_heard() -> None:
    pytest.importorskip("faster_whisper")
    pytest.importorskip("english_words")
    from segue.plugins.metrics.words import figures

    said = ["the", "cats", "were", "running", "to", "the", "cats", "were", "running", "xqzzt"]
    found = figures(said, [*said[:-1], "there"], 5.0)
    assert found["word_error"] == pytest.approx(0.1) and found["words_per_second"] == 2
    assert found["english"] == pytest.approx(0.9)
    assert found["repeated"] == pytest.approx(2 / 8)  # "the cats were running"
    nothing = figures([], ["you"], 5.0)
    assert nothing["word_error"] == 1 and nothing["words_per_second"] == 0
    assert all(math.isnan(figure) for figure in figures([], [], 0.0).values())


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    pytest.importorskip("faster_whisper")
    with pytest.raises(ConfigError, match=r"no model\.bin"):
        create("metric", "word_error.v1", {"weights": str(tmp_path)})


@pytest.mark.slow
def test_word_error_of_a_copy_of_silence_and_of_noise() -> None:
    metric, wave = create("metric", "word_error.v1"), speech()
    if math.isnan(metric(wave, wave, RATE)):
        pytest.skip("the prompt holds no words")
    assert metric(wave, wave, RATE) == 0
    assert metric(wave, torch.zeros_like(wave), RATE) == 1
    assert metric(wave, wave + noise(len(wave) / RATE, level=0.001)[: len(wave)], RATE) < 0.5
    assert math.isnan(metric(torch.zeros_like(wave), wave, RATE))


@pytest.mark.slow
def test_recognisers_agree_on_speech_and_not_on_babble() -> None:
    metric, wave = create("continuation_metric", "agreement.v1"), speech()
    backwards = wave.flip(0)
    found = metric.measure([record(wave, wave, wave, "a"), record(wave, backwards, wave, "b")])
    real, babble = found.rows
    assert real["word_error"] == real["truth_word_error"] < babble["word_error"]
    every = torch.ones(2, dtype=torch.float64)
    assert found.overall["truth_pooled_word_error"](every) < found.overall["pooled_word_error"](
        every
    )


@pytest.mark.slow
def test_opinion_falls_with_noise() -> None:
    metric, wave = create("continuation_metric", "distillmos.v1"), speech()
    noisy = wave + noise(len(wave) / RATE, level=0.05)[: len(wave)]
    silent = torch.zeros_like(wave)
    rows = metric.measure([record(wave, w, wave, "a") for w in (wave, noisy, silent)]).rows
    assert 5 >= rows[0]["opinion"] > rows[1]["opinion"] >= 1
    assert rows[0]["opinion"] == rows[0]["truth_opinion"] and math.isnan(rows[2]["opinion"])
