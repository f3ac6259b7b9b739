"""Random tokens to check a stage language model with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from segue.core.interfaces import StageBatch, StageLM, Tokens
from segue.core.options import Sampling
from segue.core.sampling import row_generators
from segue.core.spec import SliceSpec, StageSpec
from segue.testing.check import NotApplicable, require
from segue.testing.compare import scrambled
from segue.testing.subject import Subject

#: Frames of the rows of a target, and of the prompts to continue: the second has none.
LENGTHS = (7, 4, 5, 1)
PROMPTS = (3, 0, 4, 1)
NEW_FRAMES = 5


def lm_of(subject: Subject) -> StageLM:
    """An instance with noise on its weights, in eval mode, checked to be a stage model."""
    lm = subject.create()
    require(isinstance(lm, StageLM), f"{type(lm).__name__} is no StageLM")
    assert isinstance(lm, StageLM)
    return scrambled(lm)


def autoregressive_lm_of(subject: Subject) -> StageLM:
    """The same, for promises that hold where each token is drawn from its score.

    Raises:
        NotApplicable: for a model that says it is not of that kind.
    """
    lm = lm_of(subject)
    if not lm.autoregressive:
        raise NotApplicable("the model fills masks in passes, not each token from its score")
    return lm


def tokens_for(spec: SliceSpec, lengths: Sequence[int]) -> Tokens:
    """Random frames, padded with 0."""
    ids = torch.randint(spec.codebook_size, (len(lengths), spec.num_levels, max(lengths)))
    tokens = Tokens(ids, torch.tensor(lengths))
    return Tokens(ids.masked_fill(~tokens.mask[:, None], 0), tokens.lengths)


def given_for(stage: StageSpec, lengths: Sequence[int]) -> tuple[Tokens, ...]:
    """What is given with rows of ``lengths`` target frames: the last, partial frame included."""
    batches = []
    for index, spec in enumerate(stage.given):
        batches.append(tokens_for(spec, [stage.given_frames(index, n) for n in lengths]))
    return tuple(batches)


def batch_for(stage: StageSpec, lengths: Sequence[int] = LENGTHS) -> StageBatch:
    return StageBatch(tokens_for(stage.target, lengths), given_for(stage, lengths))


def row_of(batch: StageBatch, index: int) -> StageBatch:
    """One row of a batch, without padding."""
    target, *given = (Tokens.full(t.row(index)[None]) for t in (batch.target, *batch.given))
    return StageBatch(target, tuple(given))


def soiled(tokens: Tokens, codebook_size: int) -> Tokens:
    """The same frames with other ids in the padding, and more of it."""
    ids = torch.cat([tokens.ids, torch.zeros_like(tokens.ids[:, :, :1]).repeat(1, 1, 3)], dim=2)
    wide = Tokens(ids, tokens.lengths)
    noise = torch.randint(1, max(2, codebook_size), ids.shape) % codebook_size
    return Tokens(torch.where(wide.mask[:, None], ids, noise), tokens.lengths)


def soiled_batch(batch: StageBatch, stage: StageSpec) -> StageBatch:
    return StageBatch(soiled(batch.target, stage.target.codebook_size),
                      soiled_given(batch.given, stage))  # fmt: skip


def soiled_given(given: Sequence[Tokens], stage: StageSpec) -> tuple[Tokens, ...]:
    pairs = zip(given, stage.given, strict=True)
    return tuple(soiled(tokens, spec.codebook_size) for tokens, spec in pairs)


def continued(
    lm: StageLM,
    given: tuple[Tokens, ...],
    prompt: Tokens,
    num_frames: int = NEW_FRAMES,
    temperature: float = 1.0,
    seeds: Sequence[int] | None = None,
) -> Tokens:
    """New frames; row i draws with generator ``seeds[i]``, by default i."""
    rows = prompt.ids.shape[0]
    generators = [row_generators(seed, 1)[0] for seed in (range(rows) if seeds is None else seeds)]
    return lm.generate(given, prompt, num_frames, Sampling(temperature=temperature), generators)


def prompts_for(stage: StageSpec, prompts: Sequence[int] = PROMPTS) -> StageBatch:
    """Ragged prompts, with the given frames that continuing them by ``NEW_FRAMES`` takes."""
    target = tokens_for(stage.target, prompts)
    return StageBatch(target, given_for(stage, [length + NEW_FRAMES for length in prompts]))


def alternatives(tokens: Int64[Tensor, "Q N"], level: int, frame: int, ids: Tensor) -> Tensor:
    """``[len(ids), Q, N]``: the row with each of ``ids`` at one place."""
    rows = tokens.repeat(len(ids), 1, 1)
    rows[:, level, frame] = ids
    return rows


def repeated(given: Sequence[Tokens], count: int) -> tuple[Tokens, ...]:
    """Each batch of one row, ``count`` times."""
    return tuple(Tokens(t.ids.repeat(count, 1, 1), t.lengths.repeat(count)) for t in given)
