"""Filling: a stretch is drawn anew between two sides that stay as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import melody

from segue import Pipeline
from segue.core.config_files import load_config
from segue.core.errors import AudioError, GenerationError
from segue.core.interfaces import StageBatch, Tokens
from segue.core.plugins import PluginHost

RATE, FADE = 16_000, 320
WAVE = melody(4.0, seed=5)


@pytest.fixture(scope="module")
def causal(tiny_pipelines: dict[str, Path]) -> Pipeline:
    """Both stages go from left to right."""
    return Pipeline.from_pretrained(tiny_pipelines["speech"])


@pytest.fixture(scope="module")
def masked(tiny_pipelines: dict[str, Path]) -> Pipeline:
    """The acoustic stage fills masks."""
    host = PluginHost.discover(entry_points=False)
    lm = "{use: masked_transformer.v1, options: {width: 16, depth: 1, heads: 2}}"
    overrides = [f"stages.acoustic.lm={lm}"]
    config = load_config(tiny_pipelines["speech"], host, overrides).config
    torch.manual_seed(0)
    return Pipeline.from_config(config, host=host, allow_untrained=True)


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_both_sides_stay_and_nothing_of_the_old_stretch_does(
    kind: str, request: pytest.FixtureRequest
) -> None:
    pipeline: Pipeline = request.getfixturevalue(kind)
    result = pipeline.fill(WAVE, RATE, 1.0, 1.79, seed=3, candidates=3)
    start, end = RATE, RATE + 20 * pipeline.unit_samples  # whole frames of 40 ms
    assert result.metadata["gap"] == [1.0, 1.8] and result.metadata["task"] == "fill"
    assert torch.equal(result.row()[: start - FADE], WAVE[: start - FADE])
    assert torch.equal(result.row()[end + FADE :], WAVE[end + FADE :])
    assert torch.equal(result.continuation(), result.row()[start:end])
    assert not torch.isclose(result.continuation(), WAVE[start:end]).all()
    both = "drawn from both sides"
    left = "best of 3 continuations of the left side"
    ways = {"semantic": left, "acoustic": both if kind == "masked" else left}
    assert result.metadata["ways"] == ways
    assert f"acoustic: {ways['acoustic']}" in result.notes[0]
    other = WAVE.clone()
    other[start:end] = 0.7
    again = pipeline.fill(other, RATE, 1.0, 1.8, seed=3, candidates=3)
    assert torch.equal(again.wave, result.wave)
    changed = pipeline.fill(WAVE, RATE, 1.0, 1.8, seed=4, candidates=3)
    assert not torch.equal(changed.wave, result.wave)


def test_the_drawn_tokens_lie_between_those_of_the_sides(masked: Pipeline) -> None:
    result = masked.fill(WAVE, RATE, 1.0, 2.0, candidates=1)
    codes = result.tokens["acoustic"].row(0)
    assert codes.shape[1] == 4 * 50
    level = masked.config.prompt.level
    assert level is not None
    kept = torch.cat([WAVE[:RATE], WAVE[2 * RATE :]])
    right = WAVE[2 * RATE :] * (level / kept.square().mean().sqrt())
    expected = masked.codec.encode(right[None], torch.tensor([len(right)])).row(0)
    assert torch.equal(codes[:, 100:], expected[: len(codes)])
    assert result.metadata["ways"]["semantic"] == "continues the left side"


def test_joins_fade_between_the_recording_and_its_decoded_tokens(causal: Pipeline) -> None:
    result = causal.fill(WAVE, RATE, 1.0, 2.0, candidates=1)
    level = causal.config.prompt.level
    assert level is not None
    kept = torch.cat([WAVE[:RATE], WAVE[2 * RATE :]])
    gain = level / kept.square().mean().sqrt()
    decoded = causal.audio.decode(result.tokens["acoustic"])[0] / gain
    fade = torch.linspace(0, 1, FADE + 2)[1:-1]
    before, after = slice(RATE - FADE, RATE), slice(2 * RATE, 2 * RATE + FADE)
    wanted = fade * decoded[before] + (1 - fade) * WAVE[before]
    torch.testing.assert_close(result.row()[before], wanted, atol=1e-5, rtol=1e-4)
    wanted = fade.flip(0) * decoded[after] + (1 - fade.flip(0)) * WAVE[after]
    torch.testing.assert_close(result.row()[after], wanted, atol=1e-5, rtol=1e-4)


def test_the_continuation_stays_that_the_right_side_follows_best(
    causal: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The right side's score decides, whatever the gap's own score is."""
    batches: list[StageBatch] = []

    def score(batch: StageBatch) -> torch.Tensor:
        batches.append(batch)
        scores = torch.full(batch.target.ids.shape, -100.0)
        scores[1, :, :-12] = 0.0  # row 1 is likely itself; the right side likes row 2
        scores[2, :, -12:] = -99.0
        return scores

    monkeypatch.setattr(causal.stage_lm("semantic"), "score", score)
    result = causal.fill(WAVE, RATE, 1.0, 2.0, candidates=4)
    shown = batches[0].target.ids  # a window of 2 s: 38 frames up to the gap's end, 12 after it
    tokens = result.tokens["semantic"].row(0)
    assert shown.shape == (4, 1, 50)
    assert torch.equal(shown[2], tokens[:, 12:62])
    assert not torch.equal(shown[1], shown[2])


@pytest.mark.parametrize("kind", ["causal", "masked"])
@pytest.mark.parametrize(
    ("start", "end", "gap"),
    [
        (0.0, 1.0, [0.0, 1.0]),
        (2.5, None, [2.5, 4.0]),
        (0.03, 0.5, [0.0, 0.52]),  # less than a frame is kept before: it is drawn as well
        (2.0, 3.97, [2.0, 4.0]),
        (1.0, 1.001, [1.0, 1.04]),
        (0.5, 3.5, [0.5, 3.5]),  # longer than a window
    ],
)
def test_stretches_at_the_edges_and_of_any_length(
    kind: str, start: float, end: float | None, gap: list[float], request: pytest.FixtureRequest
) -> None:
    pipeline: Pipeline = request.getfixturevalue(kind)
    result = pipeline.fill(WAVE, RATE, start, end, candidates=2)
    assert result.metadata["gap"] == gap
    assert result.lengths.tolist() == [len(WAVE)]
    first, last = (round(second * RATE) for second in gap)
    kept = torch.ones(len(WAVE), dtype=torch.bool)
    kept[max(0, first - FADE) : last + FADE] = False
    assert torch.equal(result.row()[kept], WAVE[kept])


def test_a_masked_stage_sees_no_more_than_its_window(
    masked: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm: Any = masked.stage_lm("acoustic")
    fill, calls = lm.fill, []

    def spy(given: tuple[Tokens, ...], left: Tokens, count: int, right: Tokens, *rest: Any) -> Any:
        calls.append((int(left.lengths[0]), count, int(right.lengths[0])))
        return fill(given, left, count, right, *rest)

    monkeypatch.setattr(lm, "fill", spy)
    for start, end in ((0.5, 3.5), (0.2, 0.4), (3.0, 3.9)):
        masked.fill(WAVE, RATE, start, end, candidates=1)
    # The first gap is continued up to the last window; sides share what a gap leaves of 2 s.
    between = [call for call in calls if call[2]]
    assert between == [(24, 52, 24), (10, 10, 80), (50, 46, 4)]
    assert max(map(sum, calls)) <= 100


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        ({"start": -0.1, "end": 1.0}, "start"),
        ({"start": 4.0, "end": 5.0}, "start"),
        ({"start": "one", "end": 5.0}, "start"),
        ({"start": 1.0, "end": 1.0}, "end"),
        ({"start": 1.0, "end": 4.1}, "end"),
        ({"start": 1.0, "end": float("nan")}, "end"),
        ({"start": 0.2, "end": 3.9}, "start"),  # leaves less than the least prompt
        ({"start": 0.0}, "start"),
        ({"start": 1.0, "end": 2.0, "candidates": 0}, "candidates"),
    ],
)
def test_stretches_out_of_range(causal: Pipeline, arguments: dict[str, Any], place: str) -> None:
    with pytest.raises(GenerationError) as caught:
        causal.fill(WAVE, RATE, **arguments)
    assert caught.value.place == place
    with pytest.raises(AudioError):
        causal.fill(torch.full((RATE,), torch.nan), RATE, 0.2, 0.4)


def test_a_stage_that_ends_early_says_so(causal: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = causal.stage_lm("semantic")

    def stream(given: Any, prompt: Tokens, count: int, *rest: Any) -> Any:
        ids = torch.zeros(len(prompt.lengths), 1, 5, dtype=torch.long)
        yield Tokens(ids, torch.full((len(prompt.lengths),), 3))

    monkeypatch.setattr(lm, "stream", stream)
    result = causal.fill(WAVE, RATE, 1.0, 2.0, candidates=2)
    assert result.metadata["ways"]["semantic"].endswith(", ended early")
    assert result.lengths.tolist() == [len(WAVE)]
