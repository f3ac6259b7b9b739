"""Broken continuations are found, sound ones are not called broken."""

from __future__ import annotations

import math

import pytest
import torch
from helpers_audio import RATE, melody, noise, record, speech_like

from segue.plugins.metrics.health import Health, health, repetition


def row(prompt: torch.Tensor, continuation: torch.Tensor) -> dict[str, float]:
    return dict(Health().measure([record(prompt, continuation, prompt)]).rows[0])


def test_a_healthy_continuation() -> None:
    found = row(speech_like(3, seed=1), speech_like(8, seed=2))
    assert abs(found["level_ratio_db"]) < 1.5 and found["spectrum_distance"] < 0.1
    assert found["clipped"] == 0 and found["silent"] < 0.05 and found["repetition"] < 0.6
    assert found["healthy"] == found["truth_healthy"] == 1


def test_silence_is_seen() -> None:
    half = torch.cat([speech_like(2), torch.zeros(2 * RATE)])
    assert health(half, RATE)["silent"] == pytest.approx(0.5, abs=0.03)
    assert health(half, RATE)["healthy"] == 1
    assert health(noise(3, level=1e-4), RATE)["silent_file"] == 1
    assert health(noise(3, level=0.01), RATE)["silent"] == 0
    found = row(speech_like(3), torch.zeros(4 * RATE))
    assert found["silent"] == found["silent_file"] == 1 and found["healthy"] == 0
    assert found["level_ratio_db"] < -60 and found["spectrum_distance"] > 2
    assert found["repetition"] == 0 and found["truth_healthy"] == 1


def test_clipping_is_seen() -> None:
    found = row(noise(2), (100 * noise(4)).clamp(-1, 1))
    assert found["clipped"] > 0.9 and found["level_ratio_db"] > 15
    assert (found["clipped_file"], found["healthy"]) == (1, 0)
    quarter = health(torch.cat([noise(3), torch.ones(RATE)]), RATE)
    assert quarter["clipped"] == pytest.approx(0.25)
    few = noise(4)
    few[:10] = 1.0
    assert health(few, RATE)["clipped_file"] == 0


@pytest.mark.parametrize("period", [0.25, 1.0, 1.7])
def test_a_loop_is_seen(period: float) -> None:
    piece = speech_like(period, seed=3)
    found = health(piece.repeat(round(8 / period)), RATE)
    assert found["repetition"] > 0.95 and (found["looping_file"], found["healthy"]) == (1, 0)


def test_a_loop_at_the_end_is_seen() -> None:
    wave = torch.cat([speech_like(4, seed=1), speech_like(0.5, seed=2).repeat(7)])
    assert repetition(wave, RATE) > 0.95


@pytest.mark.parametrize("pitch", [60, 72])
def test_held_notes_and_steady_noise_are_no_loops(pitch: int) -> None:
    time = torch.arange(5 * RATE) / RATE
    held = 0.3 * torch.sin(2 * math.pi * 440 * 2 ** ((pitch - 69) / 12) * time)
    assert repetition(held + noise(5, level=1e-4), RATE) < 0.7
    assert repetition(noise(5), RATE) < 0.5


def test_a_melody_is_no_loop_but_its_repetition_is() -> None:
    random = torch.Generator().manual_seed(2)
    pitches = torch.randint(48, 80, (20,), generator=random).tolist()
    assert health(melody(pitches, 0.3), RATE)["looping_file"] == 0
    assert repetition(melody(pitches[:3] * 7, 0.3), RATE) > 0.95


def test_a_change_of_level_is_measured_in_decibels() -> None:
    wave = speech_like(3)
    assert row(wave, 2 * wave)["level_ratio_db"] == pytest.approx(6.02, abs=0.01)
    assert row(wave, 0.1 * wave)["level_ratio_db"] == pytest.approx(-20, abs=0.01)


def test_a_change_of_sound_is_measured_in_decades() -> None:
    wave = noise(4)
    same = row(wave, noise(4, seed=5))["spectrum_distance"]
    louder = row(wave, 10 * noise(4, seed=5))["spectrum_distance"]
    dull = torch.nn.functional.avg_pool1d(wave[None], 16, 1)[0]
    assert same < 0.05 and louder == pytest.approx(1, abs=0.05)
    assert row(wave, dull)["spectrum_distance"] > 0.5


def test_the_shortest_continuations_have_figures() -> None:
    found = Health().measure([record(noise(0.5), noise(0.04))]).rows[0]
    assert math.isnan(found["truth_healthy"])
    assert all(math.isfinite(value) for name, value in found.items() if name != "truth_healthy")
