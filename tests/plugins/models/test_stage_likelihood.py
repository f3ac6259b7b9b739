"""Loss and score, beyond what conformance checks: what is seen, dropout, repeats."""

from __future__ import annotations

import pytest
import torch
from helpers_stage import STAGES, CausalLM, batch_for, build, decoding, recorded, tokens
from pytest import MonkeyPatch

from segue.core.interfaces import StageBatch, Tokens
from segue.plugins.layers.transformer import attend
from segue.plugins.models.delay_transformer.model import DelayTransformer


def step_of(model: CausalLM, level: int, frame: int) -> int:
    """When a token is drawn: by the pattern, or frame by frame and level by level."""
    if isinstance(model, DelayTransformer):
        return model.pattern.stride * frame + model.pattern.delays[level]
    return model.stage.target.num_levels * frame + level


def test_every_earlier_token_matters(kind: str) -> None:
    """The last token's score moves with any token that comes before it."""
    stage = STAGES["slower"]
    model = build(kind, stage)
    batch = batch_for(stage, 6)
    before = model.score(batch)[0, -1, -1]
    for level in range(3):
        for frame in range(6):
            if step_of(model, level, frame) >= step_of(model, 2, 5):
                continue
            ids = batch.target.ids.clone()
            ids[0, level, frame] = (ids[0, level, frame] + 1) % 7
            after = model.score(StageBatch(Tokens(ids, batch.target.lengths), batch.given))
            assert (after[0, -1, -1] - before).abs() > 1e-7, (level, frame)
    for unit in range(3):
        ids = batch.given[0].ids.clone()
        ids[0, 0, unit] = (ids[0, 0, unit] + 1) % 11
        other = StageBatch(batch.target, (Tokens(ids, batch.given[0].lengths),))
        assert (model.score(other)[0, -1, -1] - before).abs() > 1e-7, unit


def test_the_first_token_knows_what_is_given_later(kind: str) -> None:
    stage = STAGES["slower"]
    model = build(kind, stage)
    batch = batch_for(stage, 6)
    ids = batch.given[0].ids.clone()
    ids[0, 0, 2] = (ids[0, 0, 2] + 1) % 11
    other = model.score(StageBatch(batch.target, (Tokens(ids, batch.given[0].lengths),)))
    assert (other - model.score(batch))[0, 0, 0].abs() > 1e-7


def test_score_is_without_dropout_and_restores_training(kind: str) -> None:
    stage = STAGES["slower"]
    model = build(kind, stage, dropout=0.5)
    batch = batch_for(stage, 5)
    frozen = model.transformer.blocks[0]
    frozen.eval()
    torch.testing.assert_close(model.score(batch), model.score(batch), atol=0, rtol=0)
    assert model.training and not frozen.training
    assert model.loss(batch).total != model.loss(batch).total
    model.eval()
    assert model.loss(batch).total == model.loss(batch).total


def test_empty_rows_and_batches_cost_nothing(kind: str) -> None:
    stage = STAGES["slower"]
    model = build(kind, stage)
    assert model.loss(StageBatch(tokens(stage.target, 0), (tokens(stage.given[0], 2),))).total == 0
    ragged = model.score(StageBatch(tokens(stage.target, 3, 0), (tokens(stage.given[0], 2, 0),)))
    assert ragged.isfinite().all() and (ragged[1] == 0).all()


def held(given: Tokens, times: int) -> Tokens:
    """Every frame so often in a row."""
    return Tokens(given.ids.repeat_interleave(times, dim=2), given.lengths * times)


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("variant", ["flat_runs", "flat_runs_sequence"])
def test_repeats_of_given_frames_are_left_out_if_asked(
    variant: str, backend: str, monkeypatch: MonkeyPatch
) -> None:
    stage = STAGES["slower"]
    once = Tokens.stack([torch.tensor([[1, 2, 3, 4, 5]]), torch.tensor([[5, 1, 5]])])
    runs = held(once, 2)
    assert runs.repeats.sum(dim=1).tolist() == [5, 3]
    model = build(variant, stage)
    seen: list[int] = []
    inner, sight = model.transformer.forward, model.transformer.sight
    places: list[torch.Tensor] = []

    def spy(x, *rest, **named):  # type: ignore[no-untyped-def]
        seen.append(x.shape[1])
        return inner(x, *rest, **named)

    monkeypatch.setattr(model.transformer, "forward", spy)
    monkeypatch.setattr(model.transformer, "sight", lambda x: places.append(x) or sight(x))
    target = tokens(stage.target, 20, 12)
    scores = model.score(StageBatch(target, (runs,)))
    assert seen == [1 + 5 + 1 + 20 * 3]
    # Rows of the same positions share what depends on them.
    assert bool((places[0] == places[0][:1]).all()) is (variant == "flat_runs_sequence")
    monkeypatch.undo()
    # How long tokens last is known by their times, and by nothing else.
    shuffled = Tokens.stack(
        [torch.tensor([[1, 2, 2, 2, 3, 4, 4, 4, 5, 5]]), torch.tensor([[5, 5, 1, 1, 1, 5]])]
    )
    others = model.score(StageBatch(target, (shuffled,)))
    same = variant == "flat_runs_sequence"
    assert torch.allclose(scores[0], others[0], atol=1e-5) is same
    kept = build(variant, stage, given_repeats="keep")
    assert not torch.allclose(kept.score(StageBatch(target, (runs,)))[0], scores[0], atol=1e-3)
    # Drawn step by step from the same likelihood.
    model.decode_with(decoding(backend))
    prompt = target.cut(torch.tensor([8, 0]))
    new, stepwise = recorded(model, (runs,), prompt, 12, monkeypatch)
    monkeypatch.undo()
    uncached = model.score(StageBatch(prompt.append(new), (runs,)))
    for row, known in enumerate((8, 0)):
        torch.testing.assert_close(
            stepwise[row], uncached[row, :, known : known + 12], atol=1e-4, rtol=1e-4
        )


def test_repeats_are_frames_that_are_the_same_at_every_level() -> None:
    ids = torch.tensor([[[1, 1, 1, 0, 0], [2, 2, 3, 0, 0]], [[4, 4, 4, 4, 4], [4, 4, 4, 4, 5]]])
    frames = Tokens(ids, torch.tensor([3, 5]))
    assert frames.repeats.int().tolist() == [[0, 1, 0, 0, 0], [0, 1, 1, 1, 0]]
    assert Tokens.empty(2, 1).repeats.shape == (2, 0)


@pytest.mark.parametrize("count", [1, 7, 64])
def test_short_sequences_are_trained_by_plain_products_as_by_fused_attention(count: int) -> None:
    queries, keys, values, change = torch.randn(4, 2, 3, count, 16).bfloat16()
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        given = [x.detach().to(dtype, copy=True).requires_grad_() for x in (queries, keys, values)]
        mixed = attend(*given, None, causal=True)
        mixed.backward(change.to(dtype))
        assert mixed.dtype == dtype
        found.append([mixed.detach().float(), *(x.grad.float() for x in given)])
    for plain, fused in zip(*found, strict=True):
        torch.testing.assert_close(plain, fused, atol=0.05, rtol=0.03)
