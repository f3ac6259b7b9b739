"""Check the promises of stage models that draw frames between two known sides."""

from __future__ import annotations

from collections.abc import Sequence

from segue.core.interfaces import Tokens
from segue.core.options import Sampling
from segue.core.sampling import row_generators
from segue.core.two_sided import TwoSided
from segue.testing.check import NotApplicable, require
from segue.testing.compare import require_legal, require_same_tokens, scrambled, unchanged
from segue.testing.stage_batches import NEW_FRAMES, given_for, lm_of, tokens_for
from segue.testing.subject import Subject

#: Frames of both sides of each row: either may have none.
_LEFT, _RIGHT = (3, 0, 2), (2, 4, 0)
_ONE_SIDED = "the model continues from the left only"

Sides = tuple[tuple[Tokens, ...], Tokens, Tokens]


def _sides(subject: Subject) -> Sides:
    stage = subject.stage
    whole = [left + NEW_FRAMES + right for left, right in zip(_LEFT, _RIGHT, strict=True)]
    left, right = (tokens_for(stage.target, lengths) for lengths in (_LEFT, _RIGHT))
    return given_for(stage, whole), left, right


def _filled(lm: TwoSided, sides: Sides, seeds: Sequence[int]) -> Tokens:
    given, left, right = sides
    generators = [row_generators(seed, 1)[0] for seed in seeds]
    return lm.fill(given, left, NEW_FRAMES, right, Sampling(), generators)


def check_fills_rows_as_if_alone(subject: Subject) -> None:
    """Check that a gap in each of several ragged rows is filled with legal codes, as if alone."""
    sides, lm = _sides(subject), lm_of(subject)
    if not isinstance(lm, TwoSided):
        raise NotApplicable(_ONE_SIDED)
    rows = range(len(_LEFT))
    with unchanged(given=sides[0], left=sides[1], right=sides[2]):
        together = _filled(lm, sides, rows)
    target = subject.stage.target
    wanted = (len(_LEFT), target.num_levels, NEW_FRAMES)
    shape = tuple(together.ids.shape)
    require(shape == wanted, f"fill returned {shape}, not {wanted}")
    require_legal(together, target.codebook_size, "filled")
    for row in rows:
        given, left, right = sides
        own = tuple(Tokens.full(tokens.row(row)[None]) for tokens in given)
        ends = (Tokens.full(side.row(row)[None]) for side in (left, right))
        alone = _filled(lm, (own, *ends), [row])  # type: ignore[arg-type]
        found = Tokens.full(together.ids[row : row + 1])
        require_same_tokens(found, alone, f"row {row} filled in a batch", subject.mismatches)


def check_filling_sees_both_sides(subject: Subject) -> None:
    """Check that what is drawn depends on the left side and on the right side."""
    sides, lm = _sides(subject), scrambled(lm_of(subject), 1.0)  # so that each code matters
    if not isinstance(lm, TwoSided):
        raise NotApplicable(_ONE_SIDED)
    size, draws = subject.stage.target.codebook_size, [range(k, k + len(_LEFT)) for k in range(16)]
    plain = [_filled(lm, sides, seeds) for seeds in draws]
    given, left, right = sides
    for name, others in (
        ("left", (given, _moved(left, size), right)),
        ("right", (given, left, _moved(right, size))),
    ):
        found = [_filled(lm, others, seeds) for seeds in draws]
        same = all(one.ids.equal(other.ids) for one, other in zip(found, plain, strict=True))
        require(not same, f"the same frames are drawn whatever the {name} side holds")


def _moved(side: Tokens, size: int) -> Tokens:
    """Return other codes."""
    return Tokens((side.ids + 1) % size, side.lengths).cut(side.lengths)
