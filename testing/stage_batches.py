"""Draw random tokens to check a stage language model with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from segue.core.interfaces import StageBatch, Tokens
from segue.core.spec import SliceSpec, StageSpec
from segue.testing.synthetic import reordered

#: Frames of the rows of a target, and of the prompts to continue: the second has none.
LENGTHS = (7, 4, 5, 1)
PROMPTS = (3, 0, 4, 1)
NEW_FRAMES = 5


def tokens_for(spec: SliceSpec, lengths: Sequence[int]) -> Tokens:
    """Return random frames, padded with 0."""
    ids = torch.randint(spec.codebook_size, (len(lengths), spec.num_levels, max(lengths)))
    return Tokens(ids, torch.tensor(lengths)).cut(torch.tensor(lengths))


def given_for(stage: StageSpec, lengths: Sequence[int]) -> tuple[Tokens, ...]:
    """Return given slices for rows of ``lengths`` target frames, a last, partial frame included."""
    return tuple(
        tokens_for(spec, [stage.given_frames(index, n) for n in lengths])
        for index, spec in enumerate(stage.given)
    )


def batch_for(stage: StageSpec, lengths: Sequence[int] = LENGTHS) -> StageBatch:
    """Return a ragged batch to score or to learn from."""
    return StageBatch(tokens_for(stage.target, lengths), given_for(stage, lengths))


def prompts_for(stage: StageSpec, prompts: Sequence[int] = PROMPTS) -> StageBatch:
    """Return ragged prompts, with the given frames to continue them by ``NEW_FRAMES``."""
    target = tokens_for(stage.target, prompts)
    return StageBatch(target, given_for(stage, [length + NEW_FRAMES for length in prompts]))


def row_of(batch: StageBatch, index: int) -> StageBatch:
    """Return one row of a batch, without padding."""
    target, *given = (Tokens.full(t.row(index)[None]) for t in (batch.target, *batch.given))
    return StageBatch(target, tuple(given))


def padded_anew(batch: StageBatch, stage: StageSpec) -> StageBatch:
    """Return the same frames with other ids in the padding, more padding and other strides."""
    pairs = zip((batch.target, *batch.given), (stage.target, *stage.given), strict=True)
    target, *given = (_padded_anew(tokens, spec.codebook_size) for tokens, spec in pairs)
    return StageBatch(target, tuple(given))


def _padded_anew(tokens: Tokens, codebook_size: int) -> Tokens:
    ids = torch.nn.functional.pad(tokens.ids, (0, 3))
    noise = torch.randint(1, max(2, codebook_size), ids.shape) % codebook_size
    mask = Tokens(ids, tokens.lengths).mask[:, None]
    return Tokens(reordered(torch.where(mask, ids, noise)), tokens.lengths)


def alternatives(tokens: Int64[Tensor, "Q N"], level: int, frame: int, ids: Tensor) -> Tokens:
    """Return the row once with each of ``ids`` at one place: ``[len(ids), Q, N]``."""
    rows = tokens.repeat(len(ids), 1, 1)
    rows[:, level, frame] = ids
    return Tokens.full(rows)


def repeated(given: Sequence[Tokens], count: int) -> tuple[Tokens, ...]:
    """Return each batch of one row ``count`` times."""
    return tuple(Tokens(t.ids.repeat(count, 1, 1), t.lengths.repeat(count)) for t in given)
