"""Promises of every stage language model about the frames that it generates."""

from __future__ import annotations

import torch

from segue.core.interfaces import StageBatch, StageLM, Tokens
from segue.core.options import Sampling
from segue.core.sampling import row_generators
from segue.testing.check import NotApplicable, require
from segue.testing.compare import (
    require_finite,
    require_legal,
    require_same_tokens,
    unchanged,
)
from segue.testing.stage_batches import (
    NEW_FRAMES,
    alternatives,
    autoregressive_lm_of,
    continued,
    given_for,
    lm_of,
    prompts_for,
    repeated,
    row_of,
    soiled,
    soiled_given,
    tokens_for,
)
from segue.testing.subject import Subject

_ALTERNATIVES = 32
_DRAWN_CODES = 64  # largest codebook of which every code is waited for
_GREEDY_FRAMES = 16
#: The low one shows where likelihoods differ, the high one where random draws do.
_TEMPERATURES = (1.0, 10.0)


def _require_frames(new: Tokens, subject: Subject, rows: int, frames: int, what: str) -> None:
    target = subject.stage.target
    shapes = tuple(new.ids.shape), (rows, target.num_levels, frames)
    require(shapes[0] == shapes[1], f"{what}: {shapes[0]} new frames instead of {shapes[1]}")
    lengths = new.lengths.tolist()
    require(lengths == [frames] * rows, f"{what}: lengths {lengths} instead of {frames} each")
    require_legal(new, target.codebook_size, what)


def check_generates_what_is_asked_for(subject: Subject) -> None:
    """Every row of ragged prompts is continued by exactly ``num_frames`` frames of legal codes."""
    lm, batch = lm_of(subject), prompts_for(subject.stage)
    rows = len(batch.target.lengths)
    for temperature in (0.0, 1.0, 10.0):
        with unchanged(given=batch.given, prompt=batch.target):
            new = continued(lm, batch.given, batch.target, temperature=temperature)
        _require_frames(new, subject, rows, NEW_FRAMES, f"at temperature {temperature:g}")
    new = continued(lm, batch.given, batch.target, num_frames=1)
    _require_frames(new, subject, rows, 1, "one frame")


def check_generates_from_nothing(subject: Subject) -> None:
    """A prompt without any frame is continued: unconditional generation."""
    lm, stage = lm_of(subject), subject.stage
    prompt = Tokens.empty(2, stage.target.num_levels)
    new = continued(lm, given_for(stage, [NEW_FRAMES] * 2), prompt)
    _require_frames(new, subject, 2, NEW_FRAMES, "from an empty prompt")


def check_generated_batch_equals_rows(subject: Subject) -> None:
    """Each row of ragged prompts is continued as it would be alone with its generator."""
    lm, batch = lm_of(subject), prompts_for(subject.stage)
    for temperature in _TEMPERATURES:
        together = continued(lm, batch.given, batch.target, temperature=temperature)
        for row in range(len(batch.target.lengths)):
            one = row_of(batch, row)
            alone = continued(lm, one.given, one.target, temperature=temperature, seeds=[row])
            found = Tokens.full(together.ids[row : row + 1])
            require_same_tokens(found, alone, f"row {row} in a batch", subject.mismatches)


def check_rows_do_not_depend_on_each_other(subject: Subject) -> None:
    """Other prompts and other draws in the rows beside it do not change a row."""
    lm, batch = lm_of(subject), prompts_for(subject.stage, [3, 2])
    other = prompts_for(subject.stage, [3, 2])
    prompt = _first_of(batch.target, other.target)
    given = tuple(map(_first_of, batch.given, other.given))
    for temperature in _TEMPERATURES:
        found = continued(lm, given, prompt, temperature=temperature, seeds=[0, 7])
        wanted = continued(lm, batch.given, batch.target, temperature=temperature, seeds=[0, 1])
        rows = Tokens.full(found.ids[:1]), Tokens.full(wanted.ids[:1])
        require_same_tokens(*rows, "beside another row", subject.mismatches)


def _first_of(one: Tokens, other: Tokens) -> Tokens:
    """The first row of one batch above the second row of another."""
    return Tokens.stack([one.row(0), other.row(1)])


def check_is_deterministic(subject: Subject) -> None:
    """Seeds determine what is generated, whatever the global random state is."""
    lm, batch = lm_of(subject), prompts_for(subject.stage)
    for temperature in _TEMPERATURES:
        first = continued(lm, batch.given, batch.target, temperature=temperature)
        torch.manual_seed(123)
        second = continued(lm, batch.given, batch.target, temperature=temperature)
        require_same_tokens(second, first, "generated a second time")


def check_padding_does_not_change_generation(subject: Subject) -> None:
    """What the padding of prompts and given slices holds does not change what is generated."""
    lm, stage = lm_of(subject), subject.stage
    batch = prompts_for(stage)
    wanted = continued(lm, batch.given, batch.target)
    prompt = soiled(batch.target, stage.target.codebook_size)
    found = continued(lm, soiled_given(batch.given, stage), prompt)
    require_same_tokens(found, wanted, "with other padding", subject.mismatches)


def check_greedy_tokens_score_best(subject: Subject) -> None:
    """At temperature 0 no other token at the same place scores better: generation, which keeps a
    cache, and scoring, which keeps none, are one model."""
    lm, stage = autoregressive_lm_of(subject), subject.stage
    size = stage.target.codebook_size
    lengths = [2, 0, 3]
    prompt = tokens_for(stage.target, lengths)
    given = given_for(stage, [length + _GREEDY_FRAMES for length in lengths])
    whole = prompt.append(continued(lm, given, prompt, _GREEDY_FRAMES, temperature=0.0))
    ids = torch.arange(size) if size <= _ALTERNATIVES else torch.randperm(size)[:_ALTERNATIVES]
    for row, start in enumerate(lengths):
        one = row_of(StageBatch(whole, given), row)
        for frame in range(start, start + _GREEDY_FRAMES):
            for level in range(stage.target.num_levels):
                _require_best(lm, one, level, frame, ids, f"row {row}", subject.atol)


def _require_best(
    lm: StageLM, one: StageBatch, level: int, frame: int, ids: torch.Tensor, row: str, atol: float
) -> None:
    tokens = one.target.row(0)
    chosen = int(tokens[level, frame])
    tried = torch.cat([torch.tensor([chosen]), ids])
    rows = Tokens.full(alternatives(tokens, level, frame, tried))
    score = lm.score(StageBatch(rows, repeated(one.given, len(tried))))[:, level, frame].detach()
    best = int(score.argmax())
    require(
        bool(score[0] >= score[best] - atol),
        f"{row}, level {level}, frame {frame}: the greedy token {chosen} scores "
        f"{float(score[0]):.4f}, but {int(tried[best])} scores {float(score[best]):.4f}",
    )


def check_draws_follow_the_scores(subject: Subject) -> None:
    """First frames drawn at temperature 1 occur as often as their scores say."""
    lm, stage, count = autoregressive_lm_of(subject), subject.stage, 2000
    size, levels = stage.target.codebook_size, stage.target.num_levels
    if size**levels > _DRAWN_CODES:
        raise NotApplicable(f"there are {size}^{levels} frames, too many to count draws of each")
    given = given_for(stage, [1])
    frames = torch.cartesian_prod(*[torch.arange(size)] * levels).view(-1, levels, 1)
    score = lm.score(StageBatch(Tokens.full(frames), repeated(given, len(frames))))
    likely = score.detach().sum(dim=(1, 2)).exp()
    new = continued(lm, repeated(given, count), Tokens.empty(count, levels), num_frames=1)
    # A frame's place among all frames: its levels are the digits.
    digits = size ** torch.arange(levels - 1, -1, -1)
    places = (new.ids[:, :, 0] * digits).sum(dim=1)
    often = places.bincount(minlength=len(frames)) / count
    gap = float((often - likely).abs().max())
    # At least five standard deviations of a share of that many draws.
    require(gap <= 2.5 / count**0.5, f"shares of drawn frames are off by up to {gap:.2f}")


def check_every_code_can_be_drawn(subject: Subject) -> None:
    """Every legal code has a finite score at every level; of a small codebook each is drawn."""
    lm, stage = lm_of(subject), subject.stage
    size, levels = stage.target.codebook_size, stage.target.num_levels
    ids = torch.arange(size)[:, None, None].expand(size, levels, 1)
    given = repeated(given_for(stage, [1]), size)
    require_finite(lm.score(StageBatch(Tokens.full(ids), given)), "scores of all codes")
    if size > _DRAWN_CODES:
        return
    rows = 8 * size  # times NEW_FRAMES draws of each level
    given = repeated(given_for(stage, [NEW_FRAMES]), rows)
    new = continued(lm, given, Tokens.empty(rows, levels), temperature=10.0)
    for level in range(levels):
        missing = set(range(size)) - set(new.ids[:, level].flatten().tolist())
        require(not missing, f"level {level} never draws {sorted(missing)}")


def check_streamed_equals_generated(subject: Subject) -> None:
    """What comes in pieces is what comes at once, and is complete."""
    lm, batch = lm_of(subject), prompts_for(subject.stage)
    wanted = continued(lm, batch.given, batch.target)
    rows = len(batch.target.lengths)
    generators = [row_generators(seed, 1)[0] for seed in range(rows)]
    pieces = lm.stream(batch.given, batch.target, NEW_FRAMES, Sampling(), generators)
    found = Tokens.empty(rows, subject.stage.target.num_levels)
    for piece in pieces:
        require(piece.ids.shape[2] > 0, "a piece holds no frame")
        found = found.append(piece)
    require_same_tokens(found, wanted, "streamed", subject.mismatches)


CHECKS = (
    check_generates_what_is_asked_for,
    check_generates_from_nothing,
    check_generated_batch_equals_rows,
    check_rows_do_not_depend_on_each_other,
    check_is_deterministic,
    check_padding_does_not_change_generation,
    check_greedy_tokens_score_best,
    check_draws_follow_the_scores,
    check_every_code_can_be_drawn,
    check_streamed_equals_generated,
)
