"""Small stages to check a stage language model with: every sequence of theirs can be tried."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from segue.core.spec import ACOUSTIC, SEMANTIC, SliceSpec, StageSpec

# Unequal sizes, so that one codebook taken for another shows.
_SEMANTIC = SliceSpec(SEMANTIC, 0, 1, codebook_size=7, frame_rate=Fraction(25))
_COARSE = SliceSpec(ACOUSTIC, 0, 2, codebook_size=5, frame_rate=Fraction(50))
_FINE = SliceSpec(ACOUSTIC, 2, 5, codebook_size=3, frame_rate=Fraction(50))

#: AudioLM's three stages in miniature: given nothing, given slower frames, given two slices.
TINY_STAGES: Mapping[str, StageSpec] = {
    "first": StageSpec("first", _SEMANTIC),
    "second": StageSpec("second", _COARSE, (_SEMANTIC,)),
    "third": StageSpec("third", _FINE, (_SEMANTIC, _COARSE)),
}
