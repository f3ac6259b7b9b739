"""Learning to draw without guidance what guidance draws."""

from __future__ import annotations

import pytest
import torch
from helpers_stage import STAGES, alone, batch_for, build, repeated

from segue.core.interfaces import StageBatch, Tokens
from segue.core.options import GuidedConfig
from segue.core.spec import StageSpec

KNOWN = 4
#: Prompts of ``KNOWN`` frames at 50 Hz.
GUIDED = GuidedConfig(
    guidance=2.5, prompt_guidance=1.75, temperature=0.5, prompt_seconds=(0.08, 0.08), drawn=0.0
)
LENGTHS = (8, 7)


def expected(
    kind: str, stage: StageSpec, batch: StageBatch, guided: GuidedConfig
) -> list[torch.Tensor]:
    """The divergence of every token after the prompt, from scores of all codes, by level."""
    teacher, student = build(kind, stage, condition_dropout=0.2), build(kind, stage, spread=0.1)
    found: list[list[torch.Tensor]] = [[] for _ in range(stage.target.num_levels)]
    for row, length in enumerate(LENGTHS):
        whole = alone(batch.target, row).ids
        own = tuple(
            g.cut(torch.tensor([stage.given_frames(i, length)] * 2))
            for i, g in enumerate(batch.given)
        )
        own = tuple(alone(g, row) for g in own)
        none = tuple(Tokens(g.ids, torch.zeros_like(g.lengths)) for g in own)
        later = tuple(
            Tokens.full(g.ids[:, :, stage.given_frames(index, KNOWN) :])
            for index, g in enumerate(own)
        )
        first = KNOWN if own else 0  # the last second is all of the prompt
        for level in range(whole.shape[1]):
            for frame in range(KNOWN, length):
                tried = whole.repeat(7, 1, 1)
                tried[:, level, frame] = torch.arange(7)
                at = frame - length
                seen, blind, unprompted = (
                    teacher.score(StageBatch(Tokens.full(ids), repeated(side, 7)))[:, level, at]
                    for ids, side in ((tried, own), (tried, none), (tried[:, :, first:], later))
                )
                moved = blind + guided.guidance * (seen - blind)
                moved = moved + (guided.prompt_guidance - 1) * (seen - unprompted)
                scores = student.score(StageBatch(Tokens.full(tried), repeated(own, 7)))
                wanted = (moved / guided.temperature).log_softmax(0)
                made = (scores[:, level, at] / guided.temperature).log_softmax(0)
                found[level].append((wanted.exp() * (wanted - made)).sum())
    return [torch.stack(level) for level in found]


@pytest.mark.parametrize("name", ["slower", "levels"])
@pytest.mark.parametrize("kind", ["flat", "delay", "depth"])
def test_the_loss_is_the_divergence_from_guided_draws(kind: str, name: str) -> None:
    stage = STAGES[name]
    guided = GUIDED if stage.given else GUIDED.model_copy(update={"guidance": 1.0})
    batch = batch_for(stage, *LENGTHS)
    teacher, student = build(kind, stage, condition_dropout=0.2), build(kind, stage, spread=0.1)
    loss = student.eval().guided_loss(batch, teacher.eval(), guided)
    levels = torch.stack([level.mean() for level in expected(kind, stage, batch, guided)])
    assert torch.allclose(loss.per_level, levels, rtol=1e-3, atol=1e-5)
    assert torch.allclose(loss.total, levels.mean(), rtol=1e-3, atol=1e-5)


def test_a_model_learns_what_guidance_draws() -> None:
    stage = STAGES["slower"]
    batch = batch_for(stage, *LENGTHS)
    teacher = build("delay", stage, condition_dropout=0.2).eval()
    student = build("delay", stage, condition_dropout=0.2).train()
    optimizer = torch.optim.Adam(student.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = student.guided_loss(batch, teacher, GUIDED).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("drawn", [0.0, 1.0])
def test_it_learns_from_what_it_draws(drawn: float) -> None:
    """What was recorded after the prompt does not matter then."""
    stage, guided = STAGES["slower"], GUIDED.model_copy(update={"drawn": drawn})
    teacher = build("delay", stage, condition_dropout=0.2).eval()
    student = build("delay", stage, spread=0.1).train()
    batch = batch_for(stage, 8, 8)
    other = batch.target.ids.clone()
    other[:, :, KNOWN:] = (other[:, :, KNOWN:] + 1) % 7
    losses = []
    for ids in (batch.target.ids, other):
        torch.manual_seed(1)
        changed = StageBatch(Tokens.full(ids), batch.given)
        losses.append(student.guided_loss(changed, teacher, guided).total)
    assert student.training
    assert torch.equal(*losses) == (drawn == 1.0)


def test_prompts_are_as_long_as_asked_for() -> None:
    """A prompt longer than half of the crop would leave little to learn from."""
    stage = STAGES["slower"]
    teacher = build("delay", stage, condition_dropout=0.2).eval()
    student = build("delay", stage, spread=0.1).eval()
    batch = batch_for(stage, 8, 8)
    asked = [(0.08, 0.08), (0.0, 0.16), (1.0, 4.0)]
    losses = [
        student.guided_loss(
            batch, teacher, GUIDED.model_copy(update={"prompt_seconds": seconds})
        ).total
        for seconds in asked
    ]
    assert losses[0] == losses[1] == losses[2]
