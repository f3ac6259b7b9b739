"""Choose which codes are masked: in a training example, and after each pass of decoding.

SoundStorm (Borsos et al., arXiv 2305.09636), sections 3.2 and 3.3, with the cosine schedule of
MaskGIT (Chang et al., arXiv 2202.04200, section 3.3).
Shape legend: B batch, Q levels, N frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from segue.core.interfaces import Ids, Tokens

#: Default number of passes of the lowest level of all (SoundStorm, section 4).
FIRST_LEVEL_PASSES = 16


def masked_share(progress: float) -> float:
    """Return the share of masked frames, from 1 at progress 0 to 0 at progress 1."""
    return math.cos(math.pi / 2 * progress)


def num_masked(progress: float, frames: int) -> int:
    """Return the number of masked frames, at least one, of a training example with ``frames``.

    Args:
        progress: drawn uniformly from [0, 1).
        frames: frames that may be masked, at least one.
    """
    return min(frames, max(1, math.ceil(frames * masked_share(progress))))


def masked_after(frames: int, passes: int) -> list[int]:
    """Return how many of ``frames`` frames are still masked after each pass.

    Every pass fills at least one frame, so there are at most as many passes as frames.
    """
    passes = min(passes, frames)
    left, before = [], frames
    for number in range(1, passes + 1):
        planned = math.floor(frames * masked_share(number / passes))
        # Leave at least one frame for each later pass, and fill at least one now.
        before = max(passes - number, min(before - 1, planned))
        left.append(before)
    return left


def passes_by_level(
    iterations: Sequence[int] | None, num_levels: int, start: int
) -> tuple[int, ...]:
    """Return the number of passes of each level.

    Args:
        iterations: passes of the first levels; all further levels take one. None takes 16 for the
            lowest level of all and one for each other level.
        start: the stage's first level.
    """
    if iterations is None:
        iterations = (1,) if start else (FIRST_LEVEL_PASSES,)
    return tuple(iterations) + (1,) * (num_levels - len(iterations))


@dataclass(frozen=True)
class Masking:
    """The masks of a training batch: each row learns one level."""

    levels: Int64[Tensor, "B"]  # ``[B]``, the level that each row learns
    # ``[B]``, number of frames at the start of each row that are known at every level.
    prompts: Int64[Tensor, "B"]
    # ``[B, N]``, frames whose token at that level is to be predicted: after the prompt and never
    # padding.
    masked: Bool[Tensor, "B N"]

    def hide(self, ids: Ids, mask: int) -> Ids:
        """Replace masked codes, and all finer codes after the prompt, by ``mask``."""
        _, levels, frames = ids.shape
        level = torch.arange(levels, device=ids.device)[None, :, None]
        frame = torch.arange(frames, device=ids.device)
        learnt, prompts = self.levels[:, None, None], self.prompts[:, None, None]
        # Coarse levels are drawn before fine ones, so in decoding no finer code is known.
        finer = (level > learnt) & (frame >= prompts)
        return ids.masked_fill(finer | ((level == learnt) & self.masked[:, None]), mask)


def draw_masking(
    target: Tokens,
    generators: Sequence[torch.Generator | None],
    shares: Sequence[float] = (1.0,),
    longest_prompt: float = 1.0,
) -> Masking:
    """Draw what to mask in each row, from its own length alone: padding has no influence.

    The prompt's length is uniform, and the number of masked frames follows the cosine schedule.

    Args:
        generators: one per row; None is the global random state of the CPU.
        shares: how often each level is learnt; the last one applies to all further levels.
        longest_prompt: share of a row.
    """
    batch, num_levels, frames = target.ids.shape
    # Some levels are harder to learn than others, and each row learns one only.
    odds = torch.tensor([*shares, *[shares[-1]] * num_levels][:num_levels]).double()
    levels, prompts = torch.zeros(2, batch, dtype=torch.long)
    masked = torch.zeros(batch, frames, dtype=torch.bool)
    for row, length in enumerate(target.lengths.tolist()):
        if length == 0:
            continue
        generator = generators[row]
        levels[row] = torch.multinomial(odds, 1, generator=generator)
        longest = max(1, round(longest_prompt * length))
        prompt = int(torch.randint(longest, (), generator=generator))
        # Training meets every share of masks that a pass of decoding can leave.
        count = num_masked(float(torch.rand((), generator=generator)), length - prompt)
        chosen = torch.randperm(length - prompt, generator=generator)[:count]
        prompts[row] = prompt
        masked[row, prompt + chosen] = True
    device = target.ids.device
    return Masking(levels.to(device), prompts.to(device), masked.to(device))
