"""Check the promises of every stage language model about the frames that it generates."""

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
    padded_anew,
    prompts_for,
    repeated,
    row_of,
    tokens_for,
)
from segue.testing.subject import Subject

_ALTERNATIVES = 32
_DRAWN_CODES = 64  # largest codebook of which every code must be drawn
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


def _first_row(tokens: Tokens) -> Tokens:
    return Tokens.full(tokens.ids[:1])


def check_generates_what_is_asked_for(subject: Subject) -> None:
    """Check that each ragged prompt is continued by ``num_frames`` frames of legal codes."""
    lm, batch = lm_of(subject), prompts_for(subject.stage)
    rows = len(batch.target.lengths)
    for temperature in (0.0, 1.0, 10.0):
        with unchanged(given=batch.given, prompt=batch.target):
            new = continued(lm, batch, temperature=temperature)
        _require_frames(new, subject, rows, NEW_FRAMES, f"at temperature {temperature:g}")
    _require_frames(continued(lm, batch, num_frames=1), subject, rows, 1, "one frame")


def check_generates_from_nothing(subject: Subject) -> None:
    """Check that a prompt without any frame is continued: unconditional generation."""
    lm, stage = lm_of(subject), subject.stage
    prompt = Tokens.empty(2, stage.target.num_levels)
    new = continued(lm, StageBatch(prompt, given_for(stage, [NEW_FRAMES] * 2)))
    _require_frames(new, subject, 2, NEW_FRAMES, "from an empty prompt")


def check_generated_batch_equals_rows(subject: Subject) -> None:
    """Check that each of several ragged prompts is continued as if alone with its generator."""
    lm, batch = lm_of(subject), prompts_for(subject.stage)
    for temperature in _TEMPERATURES:
        together = continued(lm, batch, temperature=temperature)
        for row in range(len(batch.target.lengths)):
            alone = continued(lm, row_of(batch, row), temperature=temperature, seeds=[row])
            found = Tokens.full(together.ids[row : row + 1])
            require_same_tokens(found, alone, f"row {row} in a batch", subject.mismatches)


def check_rows_do_not_depend_on_each_other(subject: Subject) -> None:
    """Check that other prompts and other draws in the rows beside it do not change a row."""
    lm, batch = lm_of(subject), prompts_for(subject.stage, [3, 2])
    other = prompts_for(subject.stage, [3, 2])
    pairs = zip((batch.target, *batch.given), (other.target, *other.given), strict=True)
    target, *given = (Tokens.stack([one.row(0), two.row(1)]) for one, two in pairs)
    mixed = StageBatch(target, tuple(given))
    for temperature in _TEMPERATURES:
        found = continued(lm, mixed, temperature=temperature, seeds=[0, 7])
        wanted = continued(lm, batch, temperature=temperature, seeds=[0, 1])
        rows = _first_row(found), _first_row(wanted)
        require_same_tokens(*rows, "beside another row", subject.mismatches)


def check_is_deterministic(subject: Subject) -> None:
    """Check that seeds alone determine the new frames, whatever the global random state is."""
    lm, batch = lm_of(subject), prompts_for(subject.stage)
    for temperature in _TEMPERATURES:
        first = continued(lm, batch, temperature=temperature)
        torch.manual_seed(123)
        second = continued(lm, batch, temperature=temperature)
        require_same_tokens(second, first, "generated a second time")


def check_padding_does_not_change_generation(subject: Subject) -> None:
    """Check that the padding of prompts and given slices does not change the new frames."""
    lm, batch = lm_of(subject), prompts_for(subject.stage)
    found = continued(lm, padded_anew(batch, subject.stage))
    require_same_tokens(found, continued(lm, batch), "with other padding", subject.mismatches)


def check_greedy_tokens_score_best(subject: Subject) -> None:
    """Check that no other token scores better than the one generated at temperature 0.

    Generation keeps a cache and scoring does not: this shows that the two are one model.
    """
    lm, stage = autoregressive_lm_of(subject), subject.stage
    size, lengths = stage.target.codebook_size, [2, 0, 3]
    prompt = tokens_for(stage.target, lengths)
    given = given_for(stage, [length + _GREEDY_FRAMES for length in lengths])
    new = continued(lm, StageBatch(prompt, given), _GREEDY_FRAMES, temperature=0.0)
    whole = StageBatch(prompt.append(new), given)
    ids = torch.arange(size) if size <= _ALTERNATIVES else torch.randperm(size)[:_ALTERNATIVES]
    for row, start in enumerate(lengths):
        one = row_of(whole, row)
        for frame in range(start, start + _GREEDY_FRAMES):
            for level in range(stage.target.num_levels):
                problem = _better_token(lm, one, level, frame, ids, subject.atol)
                require(not problem, f"row {row}, level {level}, frame {frame}: {problem}")


def _better_token(
    lm: StageLM, one: StageBatch, level: int, frame: int, ids: torch.Tensor, atol: float
) -> str:
    """Return which of ``ids`` scores better than the token at a place; empty if none does."""
    tokens = one.target.row(0)
    tried = torch.cat([tokens[level, frame][None], ids])
    rows = alternatives(tokens, level, frame, tried)
    score = lm.score(StageBatch(rows, repeated(one.given, len(tried))))[:, level, frame].detach()
    best = int(score.argmax())
    if bool(score[0] >= score[best] - atol):
        return ""
    return (
        f"the greedy token {int(tried[0])} scores {float(score[0]):.4f}, "
        f"but {int(tried[best])} scores {float(score[best]):.4f}"
    )


def check_draws_follow_the_scores(subject: Subject) -> None:
    """Check that first frames drawn at temperature 1 occur as often as their scores say."""
    lm, stage, count = autoregressive_lm_of(subject), subject.stage, 2000
    size, levels = stage.target.codebook_size, stage.target.num_levels
    if size**levels > _DRAWN_CODES:
        raise NotApplicable(f"there are {size}^{levels} frames, too many to count draws of each")
    given = given_for(stage, [1])
    frames = torch.cartesian_prod(*[torch.arange(size)] * levels).view(-1, levels, 1)
    score = lm.score(StageBatch(Tokens.full(frames), repeated(given, len(frames))))
    likely = score.detach().sum(dim=(1, 2)).exp()
    nothing = StageBatch(Tokens.empty(count, levels), repeated(given, count))
    new = continued(lm, nothing, num_frames=1)
    # A frame's place among all frames: its levels are the digits.
    digits = size ** torch.arange(levels - 1, -1, -1)
    places = (new.ids[:, :, 0] * digits).sum(dim=1)
    often = places.bincount(minlength=len(frames)) / count
    gap = float((often - likely).abs().max())
    # At least five standard deviations of a share of that many draws.
    require(gap <= 2.5 / count**0.5, f"shares of drawn frames are off by up to {gap:.2f}")


def check_every_code_can_be_drawn(subject: Subject) -> None:
    """Check that each legal code has a finite score; of a small codebook, each is drawn."""
    lm, stage = lm_of(subject), subject.stage
    size, levels = stage.target.codebook_size, stage.target.num_levels
    ids = torch.arange(size)[:, None, None].expand(size, levels, 1)
    given = repeated(given_for(stage, [1]), size)
    require_finite(lm.score(StageBatch(Tokens.full(ids), given)), "scores of all codes")
    if size > _DRAWN_CODES:
        return
    rows = 8 * size  # times NEW_FRAMES draws of each level
    given = repeated(given_for(stage, [NEW_FRAMES]), rows)
    new = continued(lm, StageBatch(Tokens.empty(rows, levels), given), temperature=10.0)
    for level in range(levels):
        missing = set(range(size)) - set(new.ids[:, level].flatten().tolist())
        require(not missing, f"level {level} never draws {sorted(missing)}")


def check_streamed_equals_generated(subject: Subject) -> None:
    """Check that frames streamed in pieces are those generated at once, and complete."""
    lm, batch = lm_of(subject), prompts_for(subject.stage)
    wanted = continued(lm, batch)
    rows = len(batch.target.lengths)
    generators = [row_generators(seed, 1)[0] for seed in range(rows)]
    found = Tokens.empty(rows, subject.stage.target.num_levels)
    for piece in lm.stream(batch.given, batch.target, NEW_FRAMES, Sampling(), generators):
        require(piece.ids.shape[2] > 0, "a piece holds no frame")
        found = found.append(piece)
    require_same_tokens(found, wanted, "streamed", subject.mismatches)
