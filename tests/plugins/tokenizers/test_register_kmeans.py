"""Tokens of a piano's registers, found without scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from segue.core.interfaces import WaveBatch
from segue.plugins.tokenizers.common.options import KEYS, LOWEST, RATE, RegisterOptions
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
    found = RegisterKMeansTokenizer(RegisterOptions(**TINY)).eval()
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
