"""Self-supervised tokens of music: spectra by note, chroma as the first targets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from segue.core.interfaces import WaveBatch
from segue.plugins.layers.lengths import length_mask
from segue.plugins.tokenizers.ssl_encoder.config import SslEncoderOptions
from segue.plugins.tokenizers.ssl_encoder.encoder import FLOOR, LogMel, transposed, warp
from segue.plugins.tokenizers.ssl_encoder.model import SslEncoderTokenizer
from segue.plugins.tokenizers.ssl_encoder.targets import ChromaClusters, ChromaRegression

RATE = 16_000


@pytest.fixture
def options() -> SslEncoderOptions:
    return SslEncoderOptions(
        bands="note", num_mels=84, window=4096, width=16, depth=2, heads=2, layer=1,
        objective="hubert", target_codes=24, num_clusters=8,
    )  # fmt: skip


def notes(*midi: int, seconds: float = 0.5) -> torch.Tensor:
    """Notes one after another, each with a few partials."""
    time = torch.arange(round(seconds * RATE)) / RATE
    hertz = (440.0 * 2 ** ((note - 69) / 12) for note in midi)
    tones = [sum(torch.sin(math.tau * f * k * time) / k for k in (1, 2, 3)) for f in hertz]
    return 0.1 * torch.cat([torch.as_tensor(tone) for tone in tones])


def test_the_strongest_band_is_the_note_that_is_played(options: SslEncoderOptions) -> None:
    played = [40, 52, 60, 67, 76, 90]
    wave = notes(*played)[None]
    spectra = LogMel(options).framing.analyse(wave).abs() @ LogMel(options).filters
    heard = [int(spectra[0, 25 + 50 * place].argmax()) + 24 for place in range(len(played))]
    assert heard == played


def test_targets_tell_pitch_classes_and_hardly_octaves(options: SslEncoderOptions) -> None:
    wave = notes(48, 60, 55, 67, 50, 62)[None]
    mel = LogMel(options)(wave, torch.tensor([wave.shape[1]]))
    found = ChromaClusters(options).features(mel)[0]
    halves = found[:, :24].unflatten(1, (2, 12)).sum(1)
    heard = [int(halves[6 + round(12.5 * place)].argmax()) for place in range(6)]
    assert heard == [0, 0, 7, 7, 2, 2]


@pytest.mark.slow
def test_an_encoder_learns_what_is_played(options: SslEncoderOptions) -> None:
    torch.manual_seed(0)
    rows = torch.stack([notes(*torch.randint(48, 72, (4,)).tolist()) for _ in range(8)])
    batch = WaveBatch(rows, torch.full((8,), rows.shape[1]))
    tokenizer = SslEncoderTokenizer(
        options.model_copy(update={"dropout": 0.0, "warp": 0.0})
    ).train()
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=1e-2)
    history = []
    for _ in range(40):
        losses = tokenizer.training_step(batch)
        optimizer.zero_grad()
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        history.append(float(losses["masked"].detach()))
    assert sum(history[-5:]) < 0.7 * sum(history[5:10])


def test_what_is_measured_is_part_of_a_tokens_meaning(options: SslEncoderOptions) -> None:
    assert options.identity()["bands"] == "note"
    other = options.model_copy(update={"lowest_note": 25})
    assert other.identity() != options.identity()
    mel = SslEncoderOptions()
    assert mel.model_copy(update={"lowest_note": 25}).identity() == mel.identity()


CHROMA = {"objective": "chroma", "warp": 0.0, "normalise": "row", "layer": 2}


def test_strong_classes_are_told_from_what_sounds_everywhere(options: SslEncoderOptions) -> None:
    chosen = SslEncoderOptions(**(options.model_dump() | CHROMA))
    wave = notes(48, 60, 55, 67, 50, 62)[None]
    noise = 0.002 * torch.randn(wave.shape, generator=torch.Generator().manual_seed(0))
    told = []
    for sound in (wave, 0.1 * wave, wave + noise):
        raw = LogMel(chosen).raw(sound)
        valid = torch.ones(1, raw.shape[1] // 4, dtype=torch.bool)
        told.append(ChromaRegression(chosen).targets(raw, valid)[0])
        heard = [int(told[-1][6 + round(12.5 * place)].argmax()) for place in range(6)]
        assert heard == [0, 0, 7, 7, 2, 2]
    plain, faint, noisy = told
    assert plain.sum(1).abs().max() < 1e-4 and 0.9 < plain[6].norm() <= 1.0001
    assert (plain - faint).norm(dim=1).mean() < 0.1  # as loud as it may be
    assert (plain - noisy).norm(dim=1).mean() < 0.35
    silent = ChromaRegression(chosen).targets(LogMel(chosen).raw(0 * wave), valid)
    assert silent.norm() < 1e-3


def test_targets_of_a_row_do_not_depend_on_longer_ones(options: SslEncoderOptions) -> None:
    chosen = SslEncoderOptions(**(options.model_dump() | CHROMA))
    wave = notes(60, 64, 67)
    raw = LogMel(chosen).raw(torch.stack([wave, torch.cat([wave[:16_000], 0 * wave[16_000:]])]))
    valid = length_mask(torch.tensor([raw.shape[1] // 4, 25]), raw.shape[1] // 4)
    regression = ChromaRegression(chosen)
    padded = regression.targets(raw, valid)[1]
    alone = regression.targets(raw[1:, :100], valid[1:, :25])[0]
    torch.testing.assert_close(padded[:25], alone)
    assert not padded[25:].any()


def test_no_class_is_stronger_for_having_more_bands(options: SslEncoderOptions) -> None:
    uneven = options.model_dump() | CHROMA | {"num_mels": 80}
    regression = ChromaRegression(SslEncoderOptions(**uneven))
    found = regression.targets(torch.zeros(1, 40, 80), torch.ones(1, 10, dtype=torch.bool))
    assert found.abs().max() < 1e-5


@pytest.mark.slow
def test_harmony_can_be_learnt_though_spans_are_hidden(options: SslEncoderOptions) -> None:
    torch.manual_seed(0)
    rows = torch.stack([notes(*torch.randint(48, 72, (4,)).tolist()) for _ in range(8)])
    batch = WaveBatch(rows, torch.full((8,), rows.shape[1]))
    chosen = options.model_dump() | CHROMA | {"dropout": 0.0, "width": 32}
    tokenizer = SslEncoderTokenizer(SslEncoderOptions(**chosen)).train()
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=3e-3)
    losses: Mapping[str, torch.Tensor] = {}
    for _ in range(90):
        losses = tokenizer.training_step(batch)
        optimizer.zero_grad()
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    # To tell nothing costs about 0.9, the mean square of a target.
    assert losses["seen"] < 0.4 and losses["masked"] < 0.7
    assert losses["accuracy"] > 3 / 12 and 1 <= losses["perplexity"] <= 12
    tokenizer.eval()
    again = [tokenizer.training_step(batch)["loss"] for _ in range(2)]
    assert torch.equal(*again)


def test_rows_are_transposed_by_whole_semitones() -> None:
    mel = torch.full((40, 3, 84), -3.0)
    mel[:, :, 30] = 1.0
    moved = transposed(mel, 5, torch.Generator().manual_seed(0))
    steps = moved[:, 0].argmax(1) - 30
    assert steps.min() == -5 and steps.max() == 5 and len(steps.unique()) == 11
    up, down = moved[steps == 5][0, 0], moved[steps == -5][0, 0]
    silence = math.log(FLOOR)
    assert (up[:5] == silence).all() and (up[5:] > silence).all()
    assert (down[-5:] == silence).all() and (down[:-5] > silence).all()


def test_a_key_survives_only_where_rows_are_normalised(options: SslEncoderOptions) -> None:
    """A note that is held all along stands out of its row; in its band it is the mean."""
    wave = notes(60, seconds=2.0)[None]
    lengths = torch.tensor([wave.shape[1]])
    by_row = LogMel(options.model_copy(update={"normalise": "row"}))(wave, lengths)
    assert by_row[0, 20:180].mean(0).argmax() == 60 - options.lowest_note
    assert abs(float(by_row.mean())) < 1e-4 and 0.8 < float(by_row.std()) <= 1.01
    by_band = LogMel(options)(wave, lengths)
    assert abs(float(by_band[..., 60 - options.lowest_note].mean())) < 1e-4
    other = options.model_copy(update={"normalise": "row"})
    assert other.identity() != options.identity() and "normalise" not in options.identity()


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"bands": "mel", "objective": "chroma", "warp": 0.0}, "set bands to note"),
        ({"bands": "mel", "transpose": 3}, "transpose needs bands of notes"),
        ({"objective": "chroma", "warp": 0.2}, "set warp to 0"),
        ({"transpose": 13}, "transpose"),
    ],
)
def test_options_of_harmony_fit_together(
    options: SslEncoderOptions, wrong: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValidationError, match=problem):
        SslEncoderOptions(**(options.model_dump() | wrong))


def test_notes_are_moved_by_equal_steps(options: SslEncoderOptions) -> None:
    """A warp of frequencies by up to a fifth: each row's peak moves alike wherever it lies."""
    mel = torch.zeros(6, 2, 84)
    mel[:, :, 20], mel[:, :, 70] = 1.0, 1.0
    torch.manual_seed(0)
    moved = warp(mel, options.model_copy(update={"warp": 0.5}), None)
    halves = [half / half.sum(2, keepdim=True) for half in moved.split(42, dim=2)]
    low, high = ((half * torch.arange(42)).sum(2)[:, 0] for half in halves)
    torch.testing.assert_close(low - 20, high - 28, atol=1e-3, rtol=0)
    assert (low - 20).abs().max() > 1
