"""Generation, beyond what conformance checks: the cache, settings of sampling, refusals."""

from __future__ import annotations

import pytest
import torch
from helpers_stage import (
    CODES,
    MODELS,
    STAGES,
    alone,
    batch_for,
    build,
    decoding,
    given_for,
    recorded,
    tokens,
)
from pytest import MonkeyPatch

from segue.core.errors import GenerationError
from segue.core.interfaces import StageBatch, Tokens
from segue.core.options import Sampling
from segue.core.sampling import row_generators
from segue.core.spec import StageSpec
from segue.plugins.layers.drawing import last_frames

GREEDY = Sampling(temperature=0)
#: Each way to draw, and to leave out what is given; other variants only see positions otherwise.
DRAWN = ("flat", "flat_runs", "delay", "delay_flattened", "depth")


def check_logits(
    kind: str, stage: StageSpec, prompt_frames: tuple[int, ...], backend: str, patch: MonkeyPatch
) -> None:
    model = build(kind, stage)
    model.decode_with(decoding(backend))
    prompt = tokens(stage.target, *prompt_frames)
    given = given_for(stage, *[count + 6 for count in prompt_frames])
    new, stepwise = recorded(model, given, prompt, 6, patch)
    scores = model.score(StageBatch(prompt.append(new), given))
    for row, known in enumerate(prompt_frames):
        uncached = scores[row, :, known : known + 6]
        torch.testing.assert_close(stepwise[row], uncached, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_cached_logits_equal_uncached_ones(
    kind: str, stage: StageSpec, backend: str, monkeypatch: MonkeyPatch
) -> None:
    check_logits(kind, stage, (9, 0, 6, 1), backend, monkeypatch)


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("kind", DRAWN)
def test_cached_logits_of_one_row_from_nothing_equal_uncached_ones(
    kind: str, backend: str, monkeypatch: MonkeyPatch
) -> None:
    for name in ("levels", "two"):
        check_logits(kind, STAGES[name], (0,), backend, monkeypatch)


#: All models draw by one function, so one of each family shows what settings of sampling do.
SAMPLINGS = [Sampling(top_k=4, top_p=0.9), Sampling(temperature=0.05, repeats=2), GREEDY]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("kind", ["flat", "delay", "depth"])
def test_a_row_of_a_ragged_batch_is_drawn_as_if_alone(kind: str, sampling: Sampling) -> None:
    check_rows(kind, STAGES["two"], sampling)


def check_rows(kind: str, stage: StageSpec, sampling: Sampling) -> None:
    model = build(kind, stage)
    known = (7, 0, 4, 1)
    prompt = tokens(stage.target, *known)
    surplus = (0, 5, 2, 9)  # more is given than needed
    given = given_for(
        stage, *[count + 6 + extra for count, extra in zip(known, surplus, strict=True)]
    )
    together = model.generate(given, prompt, 6, sampling, row_generators(3, 4))
    assert together.ids.shape == (4, stage.target.num_levels, 6)
    assert together.lengths.tolist() == [6] * 4
    for row in range(4):
        own = tuple(alone(tokens, row) for tokens in given)
        single = model.generate(own, alone(prompt, row), 6, sampling, row_generators(3 + row, 1))
        assert torch.equal(single.ids[0], together.ids[row])


def test_given_frames_beyond_the_request_are_not_seen(kind: str) -> None:
    stage = STAGES["slower"]
    model = build(kind, stage)
    long, short = given_for(stage, 9, extra=7)[0], given_for(stage, 9)[0]
    long.ids[:, :, : short.ids.shape[2]] = short.ids
    prompt = tokens(stage.target, 2)
    drawn = [
        model.generate((given,), prompt, 7, Sampling(), row_generators(0, 1)).ids
        for given in (long, short)
    ]
    assert torch.equal(*drawn)


def test_temperature_zero_uses_no_randomness(kind: str) -> None:
    stage = STAGES["slower"]
    model = build(kind, stage)
    generators = row_generators(4, 2)
    states = [g.get_state() for g in generators]
    global_state = torch.get_rng_state()
    model.generate(given_for(stage, 8, 6), tokens(stage.target, 4, 2), 4, GREEDY, generators)
    assert all(torch.equal(a, g.get_state()) for a, g in zip(states, generators, strict=True))
    assert torch.equal(global_state, torch.get_rng_state())


def test_dropout_is_off_and_training_is_restored(kind: str) -> None:
    stage = STAGES["slower"]
    model = build(kind, stage, dropout=0.5).train()
    frozen = model.transformer.blocks[1]
    frozen.eval()
    arguments = given_for(stage, 8), tokens(stage.target, 2), 6, GREEDY
    first = model.generate(*arguments, row_generators(0, 1)).ids
    assert torch.equal(first, model.generate(*arguments, row_generators(9, 1)).ids)
    assert model.training and not frozen.training
    with pytest.raises(AttributeError):
        model.generate(*arguments[:3], None, row_generators(0, 1))  # type: ignore[arg-type]
    assert model.training


def test_no_frames_are_no_tokens(kind: str) -> None:
    stage = STAGES["plain"]
    model = build(kind, stage)
    new = model.generate((), tokens(stage.target, 3), 0, Sampling(), row_generators(0, 1))
    assert new.ids.shape == (1, 1, 0) and new.lengths.tolist() == [0]


def test_too_little_given_is_refused(kind: str) -> None:
    stage = STAGES["slower"]
    model = build(kind, stage)
    prompt = tokens(stage.target, 4, 2)
    with pytest.raises(GenerationError, match="row 0"):
        model.generate(given_for(stage, 10, 10), prompt, 7, Sampling(), row_generators(0, 2))
    with pytest.raises(GenerationError, match="generator"):
        model.generate(given_for(stage, 10, 10), prompt, 2, Sampling(), row_generators(0, 1))


OVERFIT = [
    pytest.param(
        kind, *case, marks=[] if kind in DRAWN and case[0] == "slower" else [pytest.mark.slow]
    )
    for kind in MODELS
    for case in (("plain", (3,)), ("slower", (3, 0, 2)))
]


@pytest.mark.parametrize(("kind", "name", "known"), OVERFIT)
def test_overfits_and_regenerates_exactly(kind: str, name: str, known: tuple[int, ...]) -> None:
    """Each row is generated up to its end: it is given there what it was given in training.

    Where nothing is given there is one row only, as nothing tells which row is to come.
    """
    stage = STAGES[name]
    model = build(kind, stage, spread=0.0)
    batch = batch_for(stage, *[count + 4 for count in known])
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(200):
        optimizer.zero_grad()
        loss = model.loss(batch).total
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if loss < 0.005:
            break
    assert loss < 0.01
    prompt = Tokens(batch.target.ids[:, :, :3], torch.tensor(known))
    new = model.generate(batch.given, prompt, 4, GREEDY, row_generators(0, len(known)))
    for row, count in enumerate(known):
        assert torch.equal(new.ids[row], batch.target.ids[row, :, count : count + 4])


@pytest.mark.parametrize("family", ["flat", "delay", "depth"])
def test_tokens_that_repeat_are_drawn_from_the_model_itself(family: str) -> None:
    """Almost greedy, an untrained model stays at one code; drawn anew, all codes are as likely."""
    model = build(family, STAGES["levels"], spread=0.02)
    prompt = Tokens.full(torch.full((2, 3, 20), 3))

    def most(sampling: Sampling) -> int:
        new = model.generate((), prompt, 60, sampling, row_generators(0, 2))
        windows = prompt.append(new).ids[:, :, 20:].unfold(2, 16, 1)
        return max(int((windows == code).sum(dim=-1).max()) for code in range(CODES))

    assert most(Sampling(temperature=0.01, repeats=4)) < 10 < most(Sampling(temperature=0.01))


def test_recent_frames_are_those_before_the_end_of_each_row() -> None:
    ids = torch.arange(1, 6).expand(3, 2, 5)
    found = last_frames(Tokens(ids, torch.tensor([5, 2, 0])), 3)
    assert found[:, 1].tolist() == [[3, 4, 5], [-1, 1, 2], [-1, -1, -1]]
