"""Metrics of other packages: their ends, their order, and what they cannot say."""

from __future__ import annotations

import math

import pytest
import torch

from segue.core.errors import ConfigError
from segue.core.interfaces import Metric
from segue.core.plugins import PluginHost

RATE = 16_000
#: What each gives a perfect copy, and silence in place of speech.
ENDS = {"stoi.v1": (1.0, 0.0), "pesq.v1": (4.644, 0.999), "visqol.v1": (5.0, 1.0)}
PACKAGES = {"stoi.v1": "pystoi", "pesq.v1": "pesq", "visqol.v1": "visqol"}
names = pytest.mark.parametrize("name", list(ENDS))


def metric(name: str, **options: object) -> Metric:
    pytest.importorskip(PACKAGES[name])
    host = PluginHost.discover(entry_points=False)
    found = host.create("metric", name, options, place=name)
    assert isinstance(found, Metric)
    return found


def syllables(seconds: float = 1.5, rate: int = RATE) -> torch.Tensor:
    """A buzz with pauses, as speech has."""
    time = torch.arange(round(seconds * rate)) / rate
    buzz = sum(torch.sin(2 * math.pi * 140 * k * time) / k for k in range(1, 20))
    envelope = torch.sin(2 * math.pi * 3 * time).clamp(min=0)
    assert isinstance(buzz, torch.Tensor)
    return 0.1 * buzz * envelope


def noise(like: torch.Tensor, level: float) -> torch.Tensor:
    return level * torch.randn(like.shape, generator=torch.Generator().manual_seed(0))


@names
def test_a_copy_is_perfect_and_noise_makes_it_worse(name: str) -> None:
    found, wave = metric(name), syllables()
    best, worst = ENDS[name]
    some, much = (found(wave, wave + noise(wave, level), RATE) for level in (0.01, 0.3))
    assert found(wave, wave, RATE) == pytest.approx(best, abs=0.01)
    assert best > some > much >= worst
    assert found.higher_is_better and found.costly == (name == "visqol.v1")


@names
def test_silence_in_place_of_speech_is_the_worst(name: str) -> None:
    wave = syllables()
    assert metric(name)(wave, torch.zeros_like(wave), RATE) == pytest.approx(ENDS[name][1])


@names
def test_a_reference_that_leaves_nothing_to_measure(name: str) -> None:
    found, wave = metric(name), syllables()
    assert math.isnan(found(torch.zeros_like(wave), wave, RATE))
    assert math.isnan(found(torch.zeros_like(wave), torch.zeros_like(wave), RATE))
    assert math.isnan(found(wave[:2000], wave[:2000], RATE))


@pytest.mark.parametrize("name", ["stoi.v1", "pesq.v1"])
def test_another_rate(name: str) -> None:
    wave = syllables(rate=24_000)
    assert metric(name)(wave, wave, 24_000) == pytest.approx(ENDS[name][0], abs=0.01)


@pytest.mark.slow
def test_visqol_of_music() -> None:
    found, wave = metric("visqol.v1", mode="audio"), syllables()
    copy = found(wave, wave, RATE)
    assert 4.5 < copy <= 5 and found(wave, wave + noise(wave, 0.1), RATE) < copy - 0.5
    assert found(wave, torch.zeros_like(wave), RATE) == 1.0


def test_a_mode_that_visqol_lacks() -> None:
    host = PluginHost.discover(entry_points=False)
    with pytest.raises(ConfigError, match=r"visqol\.v1\.options\.mode"):
        host.options("metric", "visqol.v1", {"mode": "video"}, "visqol.v1.options")
