"""Tokens of a piano transcriber, one level per register."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from segue.core.interfaces import WaveBatch
from segue.plugins.tokenizers.common.likeness import Heard, likeness
from segue.plugins.tokenizers.common.options import RATE
from segue.plugins.tokenizers.note_kmeans.config import NoteKMeansOptions
from segue.plugins.tokenizers.note_kmeans.model import HarmonicSpectrum, NoteKMeansTokenizer
from segue.testing import Check, Subject, parametrize_with_checks, ragged_audio

TINY: dict[str, Any] = {"channels": 2, "num_clusters": 8, "splits": [60]}


@parametrize_with_checks([Subject("semantic_tokenizer", "note_kmeans.v1", TINY)])
def test_conformance(subject: Subject, check: Check) -> None:
    check(subject)


@pytest.fixture(scope="module")
def tokenizer() -> NoteKMeansTokenizer:
    torch.manual_seed(0)
    found = NoteKMeansTokenizer(NoteKMeansOptions(**TINY)).eval()
    found.fit([ragged_audio([32_000, 20_000], RATE, 0)])
    return found


def test_each_register_is_a_level_with_clusters_of_its_own(tokenizer: NoteKMeansTokenizer) -> None:
    assert tokenizer.spec.num_levels == 2 and tokenizer.spec.frame_rate == 25
    audio: WaveBatch = ragged_audio([32_000], RATE, 1)
    ids = tokenizer.encode(audio.wave, audio.lengths).ids
    points = tokenizer.features(audio.wave, audio.lengths) * tokenizer.weighting
    low = 3 * (60 - 21)  # two onsets and one sounding share of each key
    centres = tokenizer.centroids + tokenizer.mean * tokenizer.weighting
    for level, part in enumerate((slice(0, low), slice(low, None))):
        gaps = torch.cdist(points[0, :, part].double(), centres[:, part].double())
        assert torch.equal(gaps.argmin(1), ids[0, level])
        assert ids[0, level].unique().numel() > 1
    vectors = tokenizer.vectors(ids)
    assert torch.equal(vectors[..., low:], tokenizer.centroids[ids[:, 1]][..., low:])
    assert torch.equal(tokenizer.vectors(ids[:, :1]), vectors[..., :low])


def test_features_lie_by_register(tokenizer: NoteKMeansTokenizer) -> None:
    """The lowest key of the second register follows the highest of the first one, three times."""
    order = tokenizer.order.tolist()
    assert order[0] == 0 and order[38:40] == [38, 88]  # MIDI 21 to 59, then their second onsets
    assert order[3 * 39] == 39 and sorted(order) == list(range(3 * 88))


def test_partials_of_a_key_stand_side_by_side() -> None:
    spectrum = HarmonicSpectrum(NoteKMeansOptions(**TINY))
    times = torch.arange(RATE) / RATE
    wave = sum(torch.sin(2 * torch.pi * 440.0 * n * times) / n for n in (1, 2, 3))
    found = spectrum(0.01 * wave[None])[0, :, 25]  # [channels, bins]
    middle = 3 * (69 - 21) + 1
    half, first, second, third = found[:4, middle].tolist()
    assert first == pytest.approx(float(found[1].max())) and first > 0.5
    assert second > 0.5 and third > 0.5 and half < 0.1


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
        NoteKMeansOptions(**options)


def heard(pitches: list[int], every: int) -> Heard:
    """Return what is heard of notes that follow each other after so many parts of frames."""
    keys = torch.zeros(100, 3, 88)
    for number, part in enumerate(range(0, 200, every)):
        key = pitches[number % len(pitches)] - 21
        keys[part // 2, part % 2, key] = 1.0
        keys[part // 2 : (part + every) // 2, 2, key] = 1.0
    return Heard(keys, 0.04)


def test_likeness_falls_with_key_rhythm_and_density() -> None:
    scale, sharp = [60, 62, 64, 65, 67, 69, 71], [61, 63, 66, 68, 70]
    known = heard(scale, 10)
    assert likeness(known, heard(scale, 10)) == pytest.approx(0, abs=1e-6)
    assert likeness(known, heard([p + 12 for p in scale], 10)) > -0.02  # octaves do not count
    other_key = likeness(known, heard(sharp, 10))
    other_rhythm = likeness(known, heard(scale, 16))
    much_denser = likeness(known, heard(scale, 4))
    assert other_key == pytest.approx(-1, abs=0.01)  # no class in common: one bit
    assert -2.3 < other_rhythm < -2.0 and much_denser < other_rhythm - 0.2
    silence = Heard(torch.zeros(100, 3, 88), 0.04)
    assert likeness(known, silence) < -2
    nothing = Heard(torch.zeros(0, 3, 88), 0.04)
    assert likeness(silence, known) == likeness(nothing, known) == likeness(nothing, silence) == 0
