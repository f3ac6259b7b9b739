"""How many frames stay masked: MaskGIT's cosine schedule, and the passes of each level.

Chang et al., arXiv 2202.04200, section 3.3; SoundStorm, arXiv 2305.09636, sections 3.2 and 3.3.
Pure functions of numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

#: Passes of the lowest level of all, if nothing else is asked for (SoundStorm, section 4).
FIRST_LEVEL_PASSES = 16


def masked_share(progress: float) -> float:
    """Share of frames that are masked, from 1 at progress 0 to 0 at progress 1."""
    return math.cos(math.pi / 2 * progress)


def num_masked(progress: float, frames: int) -> int:
    """Masked frames of a training example of at least one frame: never none.

    Args:
        progress: drawn uniformly from [0, 1).
        frames: frames that may be masked.
    """
    return min(frames, max(1, math.ceil(frames * masked_share(progress))))


def masked_after(frames: int, passes: int) -> list[int]:
    """Frames that are still masked after each pass.

    Every pass fills at least one frame and the last one fills the rest, so that more passes than
    frames are as many as there are frames.
    """
    passes = min(passes, frames)
    left, before = [], frames
    for number in range(1, passes + 1):
        planned = math.floor(frames * masked_share(number / passes))
        # One for each later pass to fill, and one that this pass fills.
        before = max(passes - number, min(before - 1, planned))
        left.append(before)
    return left


def passes_by_level(
    iterations: Sequence[int] | None, num_levels: int, start: int
) -> tuple[int, ...]:
    """Passes of each level.

    Args:
        iterations: what was asked for, from the first level on; None is (16, 1, 1, ...) for a
            stage that begins with the lowest level, else one pass for each.
        num_levels: levels that the stage predicts; those that are not named take one pass.
        start: the stage's first level.
    """
    if iterations is None:
        iterations = (1,) if start else (FIRST_LEVEL_PASSES,)
    return tuple(iterations) + (1,) * (num_levels - len(iterations))
