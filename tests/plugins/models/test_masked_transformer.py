"""SoundStorm's masked model: what is hidden, what is filled when, and what depends on what."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers_stage import (
    CODES,
    STAGES,
    acoustic,
    alone,
    batch_for,
    given_for,
    quickly,
    semantic,
    tokens,
)
from pytest import MonkeyPatch

from segue.core.errors import GenerationError
from segue.core.interfaces import StageBatch, Tokens
from segue.core.options import Sampling
from segue.core.sampling import row_generators
from segue.core.spec import StageSpec
from segue.plugins.layers.drawing import Drawer
from segue.plugins.models.masked_transformer.config import MaskedTransformerOptions
from segue.plugins.models.masked_transformer.masking import (
    draw_masking,
    masked_after,
    num_masked,
    passes_by_level,
)
from segue.plugins.models.masked_transformer.model import MaskedTransformer
from segue.testing import TINY_STAGES, Check, Subject, parametrize_with_checks

GREEDY = Sampling(temperature=0)
SMALL = {"width": 16, "depth": 1, "heads": 2}
RELATIVE = {"blocks": "transformer", "position_encoding": "relative"}
SUBJECTS = [Subject("stage_lm", "masked_transformer.v1", SMALL)]
OTHERS = [
    Subject("stage_lm", "masked_transformer.v1", SMALL | RELATIVE, label="plain-relative"),
    *(
        Subject("stage_lm", "masked_transformer.v1", SMALL, TINY_STAGES[name])
        for name in ("first", "third")
    ),
]
BLOCKS = pytest.mark.parametrize("blocks", ["conformer", "transformer"])


@parametrize_with_checks(SUBJECTS)
def test_conformance(subject: Subject, check: Check) -> None:
    check(subject)


@quickly(OTHERS)
def test_scores_and_draws_of_others(subject: Subject, check: Check) -> None:
    check(subject)


@pytest.mark.slow
@parametrize_with_checks(OTHERS)
def test_conformance_of_others(subject: Subject, check: Check) -> None:
    check(subject)


def build(stage: StageSpec, spread: float = 0.2, **options: Any) -> MaskedTransformer:
    """A model whose weights are far from their small initial values, so that all paths count."""
    torch.manual_seed(0)
    values = {"width": 32, "depth": 2, "heads": 2, "dropout": 0.0} | options
    model = MaskedTransformer(MaskedTransformerOptions(**values), stage)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return model


def seen(model: MaskedTransformer, patch: MonkeyPatch) -> list[torch.Tensor]:
    """The codes and masks that go into each pass from now on."""
    inputs: list[torch.Tensor] = []
    original = model.passes

    def spy(*arguments):  # type: ignore[no-untyped-def]
        compute = original(*arguments)
        return lambda ids: inputs.append(ids.clone()) or compute(ids)

    patch.setattr(model, "passes", spy)
    return inputs


@pytest.mark.parametrize("frames", [1, 2, 5, 16, 17, 1500])
@pytest.mark.parametrize("passes", [1, 2, 3, 16, 64])
def test_the_schedule_fills_all_frames_each_pass_some(frames: int, passes: int) -> None:
    left = masked_after(frames, passes)
    filled = [before - after for before, after in zip([frames, *left], left, strict=False)]
    assert len(left) == min(passes, frames)
    assert left[-1] == 0 and sum(filled) == frames and min(filled) > 0


def test_the_schedule_is_a_cosine() -> None:
    left = masked_after(1000, 4)
    assert left == [math.floor(1000 * math.cos(math.pi / 2 * i / 4)) for i in (1, 2, 3, 4)]


@pytest.mark.parametrize("frames", [1, 2, 7, 100])
def test_a_training_example_masks_at_least_one_frame_and_at_most_all(frames: int) -> None:
    counts = [num_masked(step / 50, frames) for step in range(50)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == frames and counts[-1] >= 1
    assert num_masked(1 - 1e-12, frames) == 1


@pytest.mark.parametrize(
    ("iterations", "start", "wanted"),
    [
        (None, 0, (16, 1, 1)),
        (None, 4, (1, 1, 1)),
        ((8,), 0, (8, 1, 1)),
        ((8, 4), 4, (8, 4, 1)),
        ((1, 2, 3), 0, (1, 2, 3)),
    ],
)
def test_passes_of_each_level(
    iterations: tuple[int, ...] | None, start: int, wanted: tuple[int, ...]
) -> None:
    assert passes_by_level(iterations, 3, start) == wanted


@pytest.mark.parametrize("generators", [None, 3])
def test_masking_follows_the_paper(generators: int | None) -> None:
    """Masks at one level after the prompt, all finer levels masked there, all else known."""
    torch.manual_seed(0)
    target = tokens(acoustic(3), *(1 + row % 9 for row in range(200)))
    own = [None if generators is None else torch.Generator().manual_seed(row) for row in range(200)]
    masking = draw_masking(target, own)
    hidden = masking.hide(target.ids, CODES)
    for row, length in enumerate(target.lengths.tolist()):
        level, prompt = int(masking.levels[row]), int(masking.prompts[row])
        assert 0 <= prompt < length
        chosen = masking.masked[row]
        assert chosen.any() and not chosen[:prompt].any() and not chosen[length:].any()
        ids, wanted = hidden[row, :, :length], target.ids[row, :, :length].clone()
        wanted[level + 1 :, prompt:] = CODES
        wanted[level][chosen[:length]] = CODES
        assert torch.equal(ids, wanted)
    assert masking.levels.unique().tolist() == [0, 1, 2]


def test_levels_and_prompts_can_be_learnt_at_other_shares() -> None:
    torch.manual_seed(0)
    target = tokens(acoustic(3), *[8] * 4000)
    masking = draw_masking(target, [None] * 4000, shares=(6, 1), longest_prompt=0.5)
    shares = masking.levels.bincount() / 4000
    assert torch.allclose(shares, torch.tensor([0.75, 0.125, 0.125]), atol=0.03)
    assert masking.prompts.unique().tolist() == [0, 1, 2, 3]


def test_every_frame_is_masked_as_often_whatever_padding_there_is() -> None:
    torch.manual_seed(0)
    long = tokens(acoustic(1), *[5] * 1999, 40)
    masking = draw_masking(long, [None] * 2000)
    masked = masking.masked[:1999].float()
    assert not masked[:, 5:].any()
    # After a prompt each frame is equally likely.
    for prompt in range(4):
        share = masked[masking.prompts[:1999] == prompt, prompt:5].mean(dim=0)
        assert float(share.max() - share.min()) < 0.13


def test_a_row_without_frames_hides_nothing() -> None:
    target = tokens(acoustic(2), 4, 0)
    assert not draw_masking(target, [None, None]).masked[1].any()
    model = build(StageSpec("acoustic", acoustic(2)))
    assert model.loss(StageBatch(target)).total.isfinite()
    empty = Tokens.empty(2, 2)
    assert model.loss(StageBatch(empty)).total == 0
    assert model.score(StageBatch(empty)).shape == (2, 2, 0)


@pytest.mark.parametrize("sampling", [Sampling(iterations=(4, 3, 2)), GREEDY])
def test_each_place_is_filled_once_and_never_changes(
    sampling: Sampling, monkeypatch: MonkeyPatch
) -> None:
    stage, known, frames = STAGES["slower"], (5, 0, 2), 9
    model = build(stage)
    inputs = seen(model, monkeypatch)
    prompt, given = tokens(stage.target, *known), given_for(stage, *(k + frames for k in known))
    new = model.generate(given, prompt, frames, sampling, row_generators(0, 3))
    planned = passes_by_level(sampling.iterations, 3, 0)
    schedule = [
        [frames - left for left in [frames, *masked_after(frames, count)][:-1]] for count in planned
    ]
    passes = sum(map(len, schedule))
    assert len(inputs) == 3 * passes  # on a CPU one row after the other
    for row, start in enumerate(known):
        rows = [ids[0] for ids in inputs[row * passes : (row + 1) * passes]]
        final = torch.cat([prompt.row(row), new.ids[row]], dim=1)
        step = 0
        for level, filled in enumerate(schedule):
            for count in filled:
                ids = rows[step]
                assert torch.equal(ids[:, :start], final[:, :start])
                assert torch.equal(ids[:level], final[:level])
                assert (ids[level + 1 :, start:] == CODES).all()
                unmasked = ids != CODES
                assert int(unmasked[level, start:].sum()) == count
                assert torch.equal(ids[unmasked], final[unmasked])
                step += 1
        assert final.max() < CODES


def test_the_consumer_of_a_stream_can_stop_after_every_pass(monkeypatch: MonkeyPatch) -> None:
    stage = STAGES["levels"]
    model = build(stage)
    inputs = seen(model, monkeypatch)
    arguments = ((), tokens(stage.target, 3), 8, Sampling(iterations=(4, 4)), row_generators(0, 1))
    sizes = []
    for piece in model.stream(*arguments):
        sizes.append((piece.ids.shape[2], len(inputs)))
    assert sizes == [*((0, passes) for passes in range(1, 10)), (8, 9)]  # 4 + 4 + 1 passes


def test_counting_repeats_is_refused() -> None:
    arguments = ((), tokens(STAGES["levels"].target, 3), 8, Sampling(repeats=4))
    with pytest.raises(GenerationError, match=r"sampling\.repeats"):
        build(STAGES["levels"]).generate(*arguments, row_generators(0, 1))


def test_the_most_confident_tokens_stay(monkeypatch: MonkeyPatch) -> None:
    """Not the least confident, and by their own confidence: known frames have none."""
    stage, frames = STAGES["levels"], 8
    model = build(stage, confidence_noise=0.0)
    inputs = seen(model, monkeypatch)
    sampling = Sampling(temperature=0, iterations=(4, 4))
    prompt = tokens(stage.target, 3)
    model.generate((), prompt, frames, sampling, row_generators(0, 1))
    monkeypatch.undo()
    model.eval()
    compute = model.passes((), torch.tensor([3 + frames]), 3 + frames)
    for step in (0, 1, 2, 4, 5, 6):
        level = step // 4
        before, after = inputs[step][0, level], inputs[step + 1][0, level]
        with torch.no_grad():
            hidden = compute(inputs[step])[0]
        best = (hidden @ model.heads.weight[level]).log_softmax(-1).max(dim=-1)
        filled = (before == CODES) & (after != CODES)
        waiting = after == CODES
        assert filled.any() and waiting.any()
        assert best.values[filled].min() > best.values[waiting].max()
        assert torch.equal(after[filled], best.indices[filled])


def test_confidence_noise_fades_as_frames_are_filled() -> None:
    model = build(STAGES["levels"], confidence_noise=2.0)
    logits = torch.randn(1, 500, CODES)

    def noise(left: float, temperature: float = 1.0) -> torch.Tensor:
        drawer = Drawer(Sampling(temperature=temperature), row_generators(0, 1))
        drawn, confidence = model._draw(logits, left, drawer)
        return confidence - logits.log_softmax(-1).gather(-1, drawn[:, :, None])[:, :, 0]

    torch.testing.assert_close(noise(0.8), 2 * noise(0.4), atol=1e-5, rtol=1e-4)
    # The standard deviation of a Gumbel distribution is pi / sqrt(6).
    assert abs(float(noise(0.5).std()) - math.pi / math.sqrt(6)) < 0.15
    assert not noise(0.0).any() and not noise(0.5, temperature=0.0).any()


def test_no_confidence_is_that_of_a_mask(monkeypatch: MonkeyPatch) -> None:
    """What is kept differs between rows and passes: confidences are not all alike."""
    stage = STAGES["slower"]
    model = build(stage, confidence_noise=0.0)
    confidences: list[torch.Tensor] = []
    original = model._draw

    def spy(*arguments):  # type: ignore[no-untyped-def]
        drawn, confidence = original(*arguments)
        confidences.append(confidence)
        return drawn, confidence

    monkeypatch.setattr(model, "_draw", spy)
    given = given_for(stage, 12, 12)
    model.generate(given, Tokens.empty(2, 3), 12, Sampling(), row_generators(0, 2))
    for confidence in confidences:
        assert confidence.isfinite().all() and (confidence <= 0).all()
        assert len(confidence.unique()) == confidence.numel()


@BLOCKS
def test_a_level_is_scored_without_itself_and_finer_levels(blocks: str) -> None:
    stage = STAGES["slower"]
    model = build(stage, blocks=blocks)
    batch = batch_for(stage, 7, 4)
    scores = model.score(batch)
    for level in range(3):
        other = batch.target.ids.clone()
        other[:, level, 3] = (other[:, level, 3] + 1) % CODES
        changed = model.score(StageBatch(Tokens(other, batch.target.lengths), batch.given))
        same = [frame for frame in range(7) if frame != 3]
        assert torch.equal(changed[:, :level], scores[:, :level])
        assert torch.equal(changed[:, level, same], scores[:, level, same])
        if level < 2:  # finer levels see this one at all frames, earlier and later ones
            assert (changed[0, level + 1] != scores[0, level + 1]).all()


@BLOCKS
def test_one_greedy_pass_per_level_takes_what_scores_best(blocks: str) -> None:
    stage = STAGES["slower"]
    model = build(stage, blocks=blocks)
    given = given_for(stage, 6)
    once = Sampling(temperature=0, iterations=(1,))
    new = model.generate(given, Tokens.empty(1, 3), 6, once, row_generators(0, 1))
    score = model.score(StageBatch(new, given))
    for code in range(CODES):
        for level in range(3):
            ids = new.ids.clone()
            ids[:, level] = code  # places of one level do not see each other
            other = model.score(StageBatch(Tokens(ids, new.lengths), given))
            assert (other[:, level] <= score[:, level] + 1e-5).all()


def test_a_training_pass_does_not_see_its_targets(monkeypatch: MonkeyPatch) -> None:
    """Other codes at the masked places leave the input of the model as it was."""
    stage = STAGES["slower"]
    model = build(stage).train()
    inputs = seen(model, monkeypatch)
    batch = batch_for(stage, 9, 6, 3)
    torch.manual_seed(4)
    model.loss(batch)
    hidden = inputs[0] == CODES
    other = torch.where(hidden, (batch.target.ids + 1) % CODES, batch.target.ids)
    torch.manual_seed(4)
    model.loss(StageBatch(Tokens(other, batch.target.lengths), batch.given))
    assert hidden.any() and torch.equal(*inputs)


SAMPLINGS: list[dict[str, Any]] = [{}, {"top_k": 4, "top_p": 0.9}, {"temperature": 0.0}]
#: Each block, guidance and sampling once; all of them together are slow.
ALONE = [("transformer", 1.0, SAMPLINGS[0]), *(("conformer", 3.0, one) for one in SAMPLINGS)]
ALL = [(b, g, one) for b in ("conformer", "transformer") for g in (1.0, 3.0) for one in SAMPLINGS]


@pytest.mark.parametrize(
    ("blocks", "guidance", "sampling"),
    [*ALONE, *(pytest.param(*case, marks=pytest.mark.slow) for case in ALL if case not in ALONE)],
)
def test_a_row_generates_the_same_alone_and_in_a_ragged_batch(
    blocks: str, guidance: float, sampling: dict[str, Any]
) -> None:
    stage, known = STAGES["slower"], (7, 0, 4, 1)
    model = build(stage, blocks=blocks, condition_dropout=0.1)
    chosen = Sampling(guidance=guidance, iterations=(3, 2), **sampling)
    prompt = tokens(stage.target, *known)
    surplus = (0, 5, 2, 9)  # more is given than needed
    given = given_for(stage, *(k + 6 + extra for k, extra in zip(known, surplus, strict=True)))
    together = model.generate(given, prompt, 6, chosen, row_generators(3, 4))
    for row in range(4):
        own = tuple(alone(tokens, row) for tokens in given)
        single = model.generate(own, alone(prompt, row), 6, chosen, row_generators(3 + row, 1))
        assert torch.equal(single.ids[0], together.ids[row])


def test_guidance_moves_the_draw_and_needs_condition_dropout() -> None:
    stage = STAGES["slower"]
    given, prompt = given_for(stage, 12), tokens(stage.target, 2)
    strong = Sampling(temperature=0, guidance=8.0)
    model = build(stage, condition_dropout=0.1)
    plain = model.generate(given, prompt, 10, GREEDY, row_generators(0, 1)).ids
    guided = model.generate(given, prompt, 10, strong, row_generators(0, 1)).ids
    assert not torch.equal(plain, guided)
    with pytest.raises(GenerationError, match="condition_dropout"):
        build(stage).generate(given, prompt, 10, strong, row_generators(0, 1))


def test_iterations_are_passes(monkeypatch: MonkeyPatch) -> None:
    stage = STAGES["levels"]
    model = build(stage)
    inputs = seen(model, monkeypatch)

    def passes(iterations: tuple[int, ...] | None, frames: int = 20) -> int:
        inputs.clear()
        sampling = Sampling(iterations=iterations)
        model.generate((), tokens(stage.target, 1), frames, sampling, row_generators(0, 1))
        return len(inputs)

    assert passes(None) == 18
    assert passes((1,)) == 3
    assert passes((4, 2, 3)) == 9
    assert passes((16,), frames=5) == 7  # one frame per pass at most
    with pytest.raises(GenerationError, match="4 levels"):
        passes((1, 1, 1, 1))


def test_heads_are_computed_for_masked_frames_of_one_level_only(monkeypatch: MonkeyPatch) -> None:
    stage = STAGES["levels"]
    model = build(stage)
    counts: list[int] = []
    original = model._draw

    def spy(logits, *rest):  # type: ignore[no-untyped-def]
        counts.append(logits.shape[1])
        return original(logits, *rest)

    monkeypatch.setattr(model, "_draw", spy)
    sampling = Sampling(iterations=(4, 2))
    model.generate((), tokens(stage.target, 30), 10, sampling, row_generators(0, 1))
    assert counts == [10, *masked_after(10, 4)[:-1], 10, *masked_after(10, 2)[:-1], 10]


def test_the_last_pass_can_be_greedy() -> None:
    stage = STAGES["slower"]
    model = build(stage, greedy_last_pass=True)
    once, given = Sampling(iterations=(1,)), given_for(stage, 9)
    cold = Sampling(iterations=(1,), temperature=0)
    found = [
        model.generate(given, tokens(stage.target, 1), 8, sampling, row_generators(seed, 1)).ids
        for sampling, seed in ((once, 0), (once, 5), (cold, 0))
    ]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_validation_loss_is_reproducible_and_training_loss_is_not() -> None:
    stage = STAGES["slower"]
    model, batch = build(stage).eval(), batch_for(stage, 30, 20)
    state = torch.get_rng_state()
    first = model.loss(batch)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(99)
    assert torch.equal(first.total, model.loss(batch).total)
    assert first.per_level.isfinite().all()
    model.train()
    assert len({float(model.loss(batch).total.detach()) for _ in range(4)}) > 1


def repeated(batch: Tokens) -> Tokens:
    return Tokens(batch.ids.repeat(8, 1, 1), batch.lengths.repeat(8))


@pytest.mark.parametrize(
    ("stage", "known"),
    [
        (StageSpec("acoustic", acoustic(3), (semantic(25),)), (4, 0, 2)),
        pytest.param(
            StageSpec("fine", acoustic(2, start=3), (acoustic(3),)), (0, 3, 5),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["soundstorm", "fine"],
)  # fmt: skip
def test_overfits_and_regenerates_exactly(stage: StageSpec, known: tuple[int, ...]) -> None:
    """With the training masks of another scheme, a toy set cannot be learnt."""
    model = build(stage, spread=0.0).train()
    batch = batch_for(stage, *(count + 5 for count in known))
    # Each row several times, since a step learns one level of each.
    often = StageBatch(repeated(batch.target), tuple(map(repeated, batch.given)))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for step in range(1, 151):
        optimizer.zero_grad()
        model.loss(often).total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % 10 == 0 and model.score(batch).min() > -0.05:
            break
    assert model.score(batch).min() > -0.1
    assert model.eval().loss(batch).total < 0.01
    prompt = Tokens(batch.target.ids[:, :, :5], torch.tensor(known))
    for sampling in (GREEDY, Sampling(temperature=0, iterations=(1,)), Sampling(temperature=0.1)):
        new = model.generate(batch.given, prompt, 5, sampling, row_generators(0, 3))
        for row, count in enumerate(known):
            assert torch.equal(new.ids[row], batch.target.ids[row, :, count : count + 5])


def test_an_even_convolution_is_refused() -> None:
    with pytest.raises(ValueError, match="odd"):
        MaskedTransformerOptions(convolution_kernel=4)


def test_finer_codes_of_the_right_side_are_hidden_until_they_are_drawn(
    monkeypatch: MonkeyPatch,
) -> None:
    """As in training, where only a prompt is known at levels finer than the one to be learnt."""
    stage = STAGES["slower"]
    model = build(stage)
    inputs = seen(model, monkeypatch)
    left, right = tokens(acoustic(3), 4, 2), tokens(acoustic(3), 3, 5, seed=1)
    given = given_for(stage, 4 + 6 + 3, 2 + 6 + 5)
    sampling = Sampling(iterations=(2, 1))
    drawn = model.fill(given, left, 6, right, sampling, row_generators(0, 2))
    assert len(inputs) == 8  # on a CPU one row after the other
    for row, (before, after) in enumerate(((4, 3), (2, 5))):
        for ids, level in zip(inputs[4 * row : 4 * row + 4], (0, 0, 1, 2), strict=True):
            stop = before + 6
            assert torch.equal(ids[0, :, :before], left.row(row))
            side = ids[0, :, stop : stop + after]
            assert torch.equal(side[: level + 1], right.row(row)[: level + 1])
            assert (side[level + 1 :] == CODES).all()
            assert (ids[0, level:, before:stop] == CODES).any()
    assert drawn.ids.shape == (2, 3, 6)


def test_half_precision_scores_are_single_precision() -> None:
    model = build(STAGES["slower"])
    batch = batch_for(STAGES["slower"], 6, 3)
    wanted = model.score(batch)
    found = model.bfloat16().score(batch)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, atol=0.3, rtol=0.1)
