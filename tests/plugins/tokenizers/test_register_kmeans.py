"""Tokens of a piano's registers, found without scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from segue.core.interfaces import WaveBatch
from segue.plugins.tokenizers.register_kmeans.config import (
    KEYS,
    LOWEST,
    RATE,
    RegisterKMeansOptions,
)
from segue.plugins.tokenizers.register_kmeans.likeness import Heard, likeness
from segue.plugins.tokenizers.register_kmeans.model import RegisterKMeansTokenizer
from segue.testing import Check, Subject, parametrize_with_checks

TINY: dict[str, Any] = {"num_clusters": 16, "splits": [60]}


@parametrize_with_checks([Subject("semantic_tokenizer", "register_kmeans.v1", TINY)])
def test_conformance(subject: Subject, check: Check) -> None:
    check(subject)


def note(key: int, start: float, seconds: float) -> Tensor:
    """Partials that fall off, struck at ``start`` and dying away."""
    times = torch.arange(round(seconds * RATE)) / RATE - start
    pitch = 440.0 * 2 ** ((key - 69) / 12)
    partials = (torch.sin(2 * torch.pi * pitch * n * times) * 0.6**n for n in range(1, 7))
    return sum(partials, torch.zeros(())) * 0.01 * torch.exp(-2 * times.clamp(min=0)) * (times >= 0)


@pytest.fixture(scope="module")
def tokenizer() -> RegisterKMeansTokenizer:
    found = RegisterKMeansTokenizer(RegisterKMeansOptions(**TINY)).eval()
    keys = [note(key, 0.3, 1.2) + note(key + 17, 0.5, 1.2) for key in range(40, 80, 3)]
    found.fit([WaveBatch(torch.stack(keys), torch.full((len(keys),), len(keys[0])))])
    return found


def heard(tokenizer: RegisterKMeansTokenizer, wave: Tensor) -> tuple[Tensor, Tensor]:
    """Return how much keys are struck in each of 50 frames a second, and sound in each of 25."""
    rows = tokenizer.row_features(wave.double())[:, tokenizer.order.argsort()].unflatten(
        1, (3, KEYS)
    )
    return rows[:, :2].flatten(0, 1), rows[:, 2]


@pytest.mark.parametrize("key", [50, 60, 69, 84])
def test_a_key_is_struck_once_and_its_partials_are_not(
    tokenizer: RegisterKMeansTokenizer, key: int
) -> None:
    struck, sounding = heard(tokenizer, note(key, 0.5, 1.2))
    frame, strongest = divmod(int(struck.argmax()), KEYS)
    assert strongest + LOWEST == key and abs(frame - 25) <= 2
    assert int(sounding[16].argmax()) + LOWEST == key
    others = torch.arange(KEYS) != key - LOWEST
    assert float(struck[:, others].max()) < float(struck.max()) / 2
    assert float(struck[:20].max()) == 0.0 and float(struck[35:].max()) < 0.3


def test_two_registers_hear_two_hands(tokenizer: RegisterKMeansTokenizer) -> None:
    left, both = note(48, 0.3, 1.2), note(48, 0.3, 1.2) + note(75, 0.6, 1.2)
    first, second = (tokenizer.encode(w[None], torch.tensor([len(w)])).ids[0] for w in (left, both))
    assert tokenizer.spec.num_levels == 2 and first.shape == (2, 30)
    late = slice(18, 27)  # the last frames see that the recording ends
    assert torch.equal(first[0, late], second[0, late])  # what is below middle C
    assert not torch.equal(first[1, late], second[1, late])


def test_each_register_is_a_level_with_clusters_of_its_own(
    tokenizer: RegisterKMeansTokenizer,
) -> None:
    wave = note(50, 0.3, 1.2) + note(67, 0.5, 1.2)
    ids = tokenizer.encode(wave[None], torch.tensor([len(wave)])).ids
    points = tokenizer.row_features(wave.double()) * tokenizer.weighting
    low = 3 * (60 - LOWEST)  # two onsets and one sounding share of each key
    centres = tokenizer.centroids + tokenizer.mean * tokenizer.weighting
    for level, part in enumerate((slice(0, low), slice(low, None))):
        gaps = torch.cdist(points[:, part], centres[:, part].double())
        assert torch.equal(gaps.argmin(1), ids[0, level])
        assert ids[0, level].unique().numel() > 1
    vectors = tokenizer.vectors(ids)
    assert torch.equal(vectors[..., low:], tokenizer.centroids[ids[:, 1]][..., low:])
    assert torch.equal(tokenizer.vectors(ids[:, :1]), vectors[..., :low])


def test_features_lie_by_register(tokenizer: RegisterKMeansTokenizer) -> None:
    """The lowest key of the second register follows the highest of the first one, three times."""
    order = tokenizer.order.tolist()
    assert order[0] == 0 and order[38:40] == [38, 88]  # MIDI 21 to 59, then their second onsets
    assert order[3 * 39] == 39 and sorted(order) == list(range(3 * 88))


@pytest.mark.parametrize(
    "options",
    [
        {"splits": [60, 60]},
        {"splits": [21]},
        {"splits": [109]},
        {"pool": 3},
        {"pitch_window": 300},
        {"margin_seconds": 10},
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RegisterKMeansOptions(**options)


def played(pitches: list[int], every: int) -> Heard:
    """Return what is heard of notes that follow each other after so many parts of frames."""
    keys = torch.zeros(100, 3, KEYS)
    for number, part in enumerate(range(0, 200, every)):
        key = pitches[number % len(pitches)] - LOWEST
        keys[part // 2, part % 2, key] = 1.0
        keys[part // 2 : (part + every) // 2, 2, key] = 1.0
    return Heard(keys, 0.04)


def test_likeness_falls_with_key_rhythm_and_density() -> None:
    scale, sharp = [60, 62, 64, 65, 67, 69, 71], [61, 63, 66, 68, 70]
    known = played(scale, 10)
    assert likeness(known, played(scale, 10)) == pytest.approx(0, abs=1e-6)
    assert likeness(known, played([p + 12 for p in scale], 10)) > -0.02  # octaves do not count
    other_key = likeness(known, played(sharp, 10))
    other_rhythm = likeness(known, played(scale, 16))
    much_denser = likeness(known, played(scale, 4))
    assert other_key == pytest.approx(-1, abs=0.01)  # no class in common: one bit
    assert -2.3 < other_rhythm < -2.0 and much_denser < other_rhythm - 0.2
    silence = Heard(torch.zeros(100, 3, KEYS), 0.04)
    assert likeness(known, silence) < -2
    nothing = Heard(torch.zeros(0, 3, KEYS), 0.04)
    assert likeness(silence, known) == likeness(nothing, known) == likeness(nothing, silence) == 0


def test_onsets_are_heard_of_all_keys_together() -> None:
    """Keys that are struck too faintly to count alone make an onset, a later echo makes none."""
    keys = torch.zeros(50, 3, KEYS)
    for part in range(0, 100, 10):
        keys[part // 2, 0, 40:43] = 0.25
        keys[part // 2, 1, 40:43] = 0.2  # 20 ms later
    strong = torch.zeros(50, 3, KEYS)
    strong[::5, 0, 40] = 1.0
    assert torch.equal(Heard(keys, 0.04).intervals, Heard(strong, 0.04).intervals)
    assert Heard(keys, 0.04).notes == 0
