"""Keys, densities and rhythms of melodies that were written here."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers_audio import C_MAJOR, RATE, SHARPS, melody, noise, record, tone

from segue.core.errors import ConfigError, PluginError
from segue.core.metrics import Note
from segue.core.plugins import PluginHost
from segue.plugins.layers.distributions import interval_table, joined
from segue.plugins.metrics.music import (
    Chroma,
    Key,
    Onsets,
    find_onsets,
    key_figures,
    key_of,
    pitch_classes,
    timing_figures,
)

SCALE = torch.zeros(12, dtype=torch.float64)
for _pitch in C_MAJOR[:7]:
    SCALE[_pitch % 12] = 1

# --- keys -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tonic", range(12))
@pytest.mark.parametrize("minor", [False, True])
def test_a_cadence_has_its_key(tonic: int, minor: bool) -> None:
    third = 3 if minor else 4
    chords = [(0, third, 7), (5, 5 + third, 0), (7, 11, 2), (0, third, 7)]
    weights = torch.zeros(12)
    for step in (step for chord in chords for step in chord):
        weights[(tonic + step) % 12] += 1
    assert key_of(weights) == Key(tonic, minor)
    assert Key(tonic, minor).share(weights) == 1


def test_shares_of_a_key() -> None:
    everything = torch.ones(12)
    assert Key(0, False).share(everything) == pytest.approx(7 / 12)
    assert Key(3, True).share(everything) == pytest.approx(8 / 12)
    assert Key(0, False).share(SCALE) == 1 and Key(0, False).share(everything - SCALE) == 0
    assert Key(6, False).share(SCALE) == pytest.approx(2 / 7)  # F sharp has B and F in common
    assert math.isnan(Key(0, False).share(torch.zeros(12)))
    assert key_of(torch.zeros(12)) is None and key_of(everything) is None


def test_figures_of_keys() -> None:
    prompt = torch.tensor([4.0, 0, 1, 0, 3, 1, 0, 3, 0, 1, 0, 1])  # C major
    found = key_figures(prompt, prompt, prompt.roll(6), [prompt.roll(6), torch.zeros(12)])
    assert (found["in_key"], found["same_key"], found["class_distance"]) == (1, 1, 0)
    assert found["truth_same_key"] == 0 and found["truth_in_key"] == found["foreign_in_key"] < 0.5
    assert found["class_distance_to_truth"] == found["foreign_class_distance"] > 0.5
    nothing = key_figures(prompt, torch.zeros(12), prompt, [])
    assert math.isnan(nothing["in_key"]) and math.isnan(nothing["foreign_in_key"])
    assert nothing["same_key"] == 0


# --- chroma -----------------------------------------------------------------------------------


@pytest.mark.parametrize("pitch", [48, 57, 60, 66, 71, 83])
def test_a_sine_is_its_pitch_class(pitch: int) -> None:
    found = pitch_classes(tone(pitch, 1.0), RATE)
    assert int(found.argmax()) == pitch % 12 and found.max() / found.sum() > 0.95


def test_a_scale_stays_in_its_key_and_the_other_notes_do_not() -> None:
    prompt = melody((60, 64, 67, 65, 69, 72, 67, 71, 62, 60))
    scale, sharps = melody(C_MAJOR), melody(SHARPS)
    records = [record(prompt, scale, scale, "a"), record(prompt, sharps, sharps, "b")]
    inside, outside = Chroma().measure(records).rows
    assert inside["in_key"] > 0.95 and outside["in_key"] < 0.1
    assert inside["truth_in_key"] == inside["in_key"]
    assert inside["foreign_in_key"] == outside["truth_in_key"]
    assert inside["class_distance"] < 0.15 and outside["class_distance"] > 0.8
    silent = Chroma().measure([record(prompt, torch.zeros(RATE))]).rows[0]
    assert math.isnan(silent["in_key"]) and math.isnan(silent["truth_in_key"])


# --- onsets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.125, 0.25, 0.5, 1.0])
def test_every_note_of_a_scale_is_an_onset(seconds: float) -> None:
    found = find_onsets(melody(C_MAJOR, seconds, overtones=6), RATE)
    assert found == pytest.approx([index * seconds for index in range(8)], abs=0.02)


def test_chords_are_one_onset_and_silence_has_none() -> None:
    chord = sum(tone(pitch, 0.5, 4) for pitch in (60, 64, 67))
    assert isinstance(chord, torch.Tensor)
    assert len(find_onsets(chord.repeat(4) / 3, RATE)) == 4
    assert find_onsets(torch.zeros(RATE), RATE) == find_onsets(torch.zeros(0), RATE) == []


def test_density_and_rhythm_of_known_melodies() -> None:
    slow, fast = melody(C_MAJOR, 0.5, 6), melody(C_MAJOR * 4, 0.125, 6)
    found = Onsets().measure([record(slow, fast, slow)]).rows[0]
    assert found["prompt_density"] == pytest.approx(2) and found["density"] == pytest.approx(8)
    assert found["density_ratio"] == pytest.approx(4) and found["within_factor_two"] == 0
    assert found["truth_density_ratio"] == found["truth_within_factor_two"] == 1
    assert found["median_interval"] == pytest.approx(0.125, abs=0.011)
    assert found["interval_distance"] > 0.9 and found["truth_interval_distance"] == 0
    silent = Onsets().measure([record(slow, torch.zeros(RATE))]).rows[0]
    assert (silent["density"], silent["within_factor_two"]) == (0, 0)
    assert math.isnan(silent["median_interval"]) and math.isnan(silent["truth_density"])


def test_timing_of_written_onsets() -> None:
    found = timing_figures([0, 1, 2, 3], [0, 0.5, 1.0, 1.5], [], (4.0, 2.0, 0.0))
    assert found["density_ratio"] == 2 and found["within_factor_two"] == 1
    assert (found["prompt_median_interval"], found["median_interval"]) == (1, 0.5)
    assert math.isnan(found["truth_density_ratio"]) and found["interval_distance"] == 1
    assert interval_table([0, 0.05, 10]).tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert joined([0.5, 0.0, 0.02, 0.049, 0.51]) == [0.0, 0.5]
    assert math.isnan(timing_figures([], [0.1], [], (1, 1, 1))["density_ratio"])


# --- notes ------------------------------------------------------------------------------------


def notes(*pitches: int, seconds: float = 0.5) -> list[Note]:
    return [Note(p, seconds * i, seconds * (i + 1)) for i, p in enumerate(pitches)]


def test_steps_between_the_highest_notes() -> None:
    pytest.importorskip("onnxruntime")
    from segue.plugins.metrics.notes import class_counts, leap_counts

    found = leap_counts(notes(60, 64, 62, 98))
    assert {int(p) - 24: int(found[p]) for p in found.nonzero()} == {4: 1, -2: 1, 24: 1}
    chord = [Note(72, 0.0, 1.0), Note(48, 0.02, 1.0), Note(50, 0.5, 1.0), Note(74, 0.53, 1.0)]
    found = leap_counts(chord)
    assert found.sum() == 1 and found[24 + 2] == 1
    assert leap_counts([]).sum() == 0
    assert class_counts(notes(60, 72, 61)).tolist() == [2, 1] + [0] * 10


def test_transcribed_scales() -> None:
    pytest.importorskip("onnxruntime")
    host = PluginHost.discover(entry_points=False)
    try:
        metric = host.create("continuation_metric", "notes.v1", {}, place="notes.v1")
    except PluginError as error:
        pytest.skip(str(error))
    prompt = melody((60, 64, 67, 65, 69, 72, 67, 71, 62, 60), 0.5, 6)
    scale, sharps = melody(C_MAJOR, 0.5, 6), melody(SHARPS, 0.25, 6)
    records = [record(prompt, scale, scale, "a"), record(prompt, sharps, sharps, "b")]
    inside, outside = metric.measure(records).rows
    assert inside["in_key"] > 0.9 and outside["in_key"] < 0.2
    assert inside["density_ratio"] == pytest.approx(1, abs=0.3) and inside["within_factor_two"]
    assert outside["density_ratio"] > 1.4
    assert inside["median_interval"] == pytest.approx(0.5, abs=0.03)
    assert inside["mean_pitch"] == pytest.approx(sum(C_MAJOR) / 8, abs=3)
    silent = metric.measure([record(prompt, torch.zeros(RATE))]).rows[0]
    assert silent["density"] == 0 and math.isnan(silent["in_key"])


def test_notes_of_pairs_are_matched_by_pitch_and_onset() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("mir_eval")
    from segue.plugins.metrics.notes import note_f1

    scale = notes(60, 62, 64, 65)
    assert note_f1(scale, scale, 0.05, True) == 1
    late = [Note(n.pitch, n.start + 0.04, n.end + 3) for n in scale]
    assert note_f1(scale, late, 0.05, True) == 1 and note_f1(scale, late, 0.03, True) == 0
    wrong = notes(60, 62, 76, 77)
    assert note_f1(scale, wrong, 0.05, True) == 0.5 and note_f1(scale, wrong, 0.05, False) == 1
    twice = scale + scale
    assert note_f1(scale, twice, 0.05, True) == pytest.approx(2 / 3)
    assert note_f1(scale, [], 0.05, True) == 0


def test_accuracy_of_transcribed_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("mir_eval")
    from segue.plugins.metrics.notes import Transcriber

    heard: dict[bytes, Any] = {}  # each recording is transcribed once
    posteriors = Transcriber._posteriors

    def remembered(transcriber: Any, wave: torch.Tensor) -> Any:
        key = wave.numpy().tobytes()
        if key not in heard:
            heard[key] = posteriors(transcriber, wave)
        return heard[key]

    monkeypatch.setattr(Transcriber, "_posteriors", remembered)
    host = PluginHost.discover(entry_points=False)
    place = "note_accuracy.v1"
    try:
        both = host.create("metric", place, {}, place=place)
    except PluginError as error:
        pytest.skip(str(error))
    onsets = host.create("metric", place, {"compare": "onsets"}, place=place)
    scale, sharps = melody(C_MAJOR, 0.5, 6), melody(SHARPS, 0.5, 6)
    assert both(scale, scale, RATE) == 1 and both(scale, 0.3 * scale, RATE) > 0.9
    assert both(scale, sharps, RATE) < 0.3 < 0.8 < onsets(scale, sharps, RATE)
    assert both(scale, torch.zeros(RATE), RATE) == 0
    assert math.isnan(both(torch.zeros(RATE), scale, RATE))


def test_a_transcriber_that_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    pytest.importorskip("onnxruntime")
    from segue.plugins.metrics import common

    host = PluginHost.discover(entry_points=False)
    options = {"model": f"{tmp_path}/none.onnx"}
    with pytest.raises(ConfigError, match=r"none\.onnx is not an ONNX model"):
        host.create("continuation_metric", "notes.v1", options, place="notes.v1")
    monkeypatch.setattr(common, "find_spec", lambda name: None)
    with pytest.raises(PluginError, match=r"pip install 'segue\[metrics\]'"):
        host.create("continuation_metric", "notes.v1", {}, place="notes.v1")


def test_noise_has_no_key_of_its_own() -> None:
    found = pitch_classes(noise(5), RATE)
    assert float(found.max() / found.sum()) < 0.15
