"""Promises of every stage language model about loss and likelihood."""

from __future__ import annotations

import torch

from segue.core.interfaces import StageBatch, Tokens
from segue.testing.check import NotApplicable, require
from segue.testing.compare import require_close, require_finite, unchanged
from segue.testing.stage_batches import (
    LENGTHS,
    alternatives,
    autoregressive_lm_of,
    batch_for,
    given_for,
    lm_of,
    repeated,
    row_of,
    soiled_batch,
)
from segue.testing.subject import Subject

#: Most sequences that are tried, and most frames of each.
_SEQUENCES, _FRAMES = 4096, 3


def check_loss_is_finite(subject: Subject) -> None:
    """The loss is a finite number for the whole and for each level of the target."""
    lm, stage = lm_of(subject).train(), subject.stage
    require(lm.stage == stage, f"it keeps the stage {lm.stage}, it was given {stage}")
    batch = batch_for(stage)
    with unchanged(batch=batch):
        loss = lm.loss(batch)
    shapes = tuple(loss.total.shape), tuple(loss.per_level.shape)
    levels = (stage.target.num_levels,)
    require(shapes == ((), levels), f"loss has shapes {shapes} instead of {((), levels)}")
    require_finite(loss.total, "loss")
    require_finite(loss.per_level, "loss per level")


def check_score_agrees_with_loss(subject: Subject) -> None:
    """The loss is the mean of the scores of valid tokens, negated; also for each level."""
    lm, batch = autoregressive_lm_of(subject), batch_for(subject.stage)
    with torch.no_grad():
        score, loss = lm.score(batch), lm.loss(batch)
    per_level = -score.sum(dim=(0, 2)) / batch.target.lengths.sum()
    require_close(loss.per_level, per_level, "loss per level against score", subject.atol)
    require_close(loss.total, per_level.mean(), "loss against score", subject.atol)


def check_score_is_zero_at_padding(subject: Subject) -> None:
    """Scores have the target's shape, are finite, and are 0 at padding."""
    lm, batch = lm_of(subject), batch_for(subject.stage)
    with unchanged(batch=batch):
        score = lm.score(batch)
    shapes = tuple(score.shape), tuple(batch.target.ids.shape)
    require(shapes[0] == shapes[1], f"scores are {shapes[0]}, the target is {shapes[1]}")
    require_finite(score, "scores")
    at_padding = score.masked_select(~batch.target.mask[:, None])
    require(not bool(at_padding.any()), "scores at padding are not 0")


def check_padding_has_no_influence(subject: Subject) -> None:
    """What padding holds, and how much of it there is, changes neither loss nor scores."""
    lm, stage = lm_of(subject), subject.stage
    clean = batch_for(stage)
    soiled = soiled_batch(clean, stage)
    width = clean.target.ids.shape[2]
    with torch.no_grad():
        score = lm.score(soiled)[:, :, :width]
        require_close(score, lm.score(clean), "scores with other padding", subject.atol)
        found, wanted = lm.loss(soiled).total, lm.loss(clean).total
    require_close(found, wanted, "loss with other padding", subject.atol)


def check_scored_batch_equals_rows(subject: Subject) -> None:
    """Each row of a ragged batch scores as it would alone."""
    lm, batch = lm_of(subject), batch_for(subject.stage)
    together = lm.score(batch)
    for row, length in enumerate(LENGTHS):
        alone = lm.score(row_of(batch, row))[0]
        found = together[row, :, :length]
        require_close(found, alone, f"scores of row {row} in a batch", subject.atol)


def check_score_is_a_likelihood(subject: Subject) -> None:
    """The probabilities of all possible targets sum to 1: no token is told by a later one.

    This holds for whatever order a model predicts in. Where there are too many sequences to try
    them all, only the probabilities of one token's alternatives are summed.
    """
    lm, target = lm_of(subject), subject.stage.target
    frames = _FRAMES
    while frames and target.codebook_size ** (target.num_levels * frames) > _SEQUENCES:
        frames -= 1
    if not frames:
        return _one_token_is_a_distribution(subject)
    places = [torch.arange(target.codebook_size)] * (target.num_levels * frames)
    ids = torch.cartesian_prod(*places).view(-1, target.num_levels, frames)
    given = repeated(given_for(subject.stage, [frames]), len(ids))
    score = lm.score(StageBatch(Tokens.full(ids), given))
    total = float(score.detach().double().sum(dim=(1, 2)).exp().sum())
    what = f"the probabilities of all {len(ids)} targets of {frames} frames sum to {total:.4f}"
    require(abs(total - 1) <= 10 * subject.atol, what)
    return None


def _one_token_is_a_distribution(subject: Subject) -> None:
    """Any other token may be known to the model, but not the one that it predicts."""
    lm, target = lm_of(subject), subject.stage.target
    batch = batch_for(subject.stage, [3])
    ids = torch.arange(target.codebook_size)
    for level in range(target.num_levels):
        rows = Tokens.full(alternatives(batch.target.row(0), level, 1, ids))
        score = lm.score(StageBatch(rows, repeated(batch.given, len(ids))))
        total = float(score[:, level, 1].detach().double().exp().sum())
        what = f"the probabilities of one token at level {level} sum to {total:.4f}"
        require(abs(total - 1) <= 10 * subject.atol, what)


def check_given_frames_matter(subject: Subject) -> None:
    """Scores depend on every given slice."""
    lm, stage = lm_of(subject), subject.stage
    if not stage.given:
        raise NotApplicable("the stage is given nothing")
    batch = batch_for(stage)
    score = lm.score(batch)
    for index, spec in enumerate(stage.given):
        tokens = batch.given[index]
        turned = (tokens.ids + 1) % spec.codebook_size * tokens.mask[:, None]
        given = [*batch.given]
        given[index] = Tokens(turned, tokens.lengths)
        changed = lm.score(StageBatch(batch.target, tuple(given)))
        same = torch.equal(changed, score)
        require(not same, f"the scores are the same whatever the given slice {spec} holds")


CHECKS = (
    check_loss_is_finite,
    check_score_agrees_with_loss,
    check_score_is_zero_at_padding,
    check_padding_has_no_influence,
    check_scored_batch_equals_rows,
    check_score_is_a_likelihood,
    check_given_frames_matter,
)
