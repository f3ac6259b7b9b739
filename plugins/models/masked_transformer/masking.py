"""What a training example hides: one level of each row is learnt from what is left to see.

SoundStorm (Borsos et al., arXiv 2305.09636), section 3.2.
Shape legend: B batch, Q levels, N frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from segue.core.interfaces import Ids, Lengths, Tokens
from segue.plugins.models.masked_transformer.schedule import num_masked


@dataclass(frozen=True)
class Masking:
    """What is hidden of a batch.

    Attributes:
        levels: ``[B]``, the level that each row learns.
        prompts: ``[B]``, frames at the start of each row that are known at every level.
        masked: ``[B, N]``, frames whose token at that level is to be predicted: after the prompt
            and never padding.
    """

    levels: Int64[Tensor, "B"]
    prompts: Int64[Tensor, "B"]
    masked: Bool[Tensor, "B N"]

    def hide(self, ids: Ids, mask: int) -> Ids:
        """The codes with ``mask`` in place of the masked ones and of all finer ones after the
        prompt."""
        _, levels, frames = ids.shape
        level = torch.arange(levels, device=ids.device)[None, :, None]
        frame = torch.arange(frames, device=ids.device)
        learnt, prompts = self.levels[:, None, None], self.prompts[:, None, None]
        finer = (level > learnt) & (frame >= prompts)
        return ids.masked_fill(finer | ((level == learnt) & self.masked[:, None]), mask)


def draw_masking(
    target: Tokens,
    generators: Sequence[torch.Generator | None],
    shares: Sequence[float] = (1.0,),
    longest_prompt: float = 1.0,
) -> Masking:
    """Draw what to hide of each row, from its own length alone: padding has no influence.

    The prompt's length is uniform, the number of masked frames follows the cosine schedule and is
    at least one. A row without frames has nothing to hide.

    Args:
        target: ids ``[B, Q, N]``.
        generators: one per row; None is the global random state of the CPU.
        shares: how often each level is learnt; the last is that of all further levels.
        longest_prompt: share of a row.
    """
    batch, num_levels, frames = target.ids.shape
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
        count = num_masked(float(torch.rand((), generator=generator)), length - prompt)
        chosen = torch.randperm(length - prompt, generator=generator)[:count]
        prompts[row] = prompt
        masked[row, prompt + chosen] = True
    device = target.ids.device
    return Masking(levels.to(device), prompts.to(device), masked.to(device))


def row_seeds(target: Tokens) -> list[int]:
    """A number per row that its valid codes determine, whatever batch it is in."""
    valid = target.ids.masked_fill(~target.mask[:, None], 0)
    return [int(total) for total in valid.sum(dim=(1, 2)) + target.lengths]


def known_levels(target: Tokens, level: int, mask: int) -> Ids:
    """Codes below ``level`` at every frame, and masks from there on."""
    ids = target.ids.clone()
    ids[:, level:] = mask
    return ids


def known_frames(prompt: Tokens, lengths: Lengths, mask: int) -> Ids:
    """Codes of the prompt ``[B, Q, N]`` within rows of ``lengths`` frames, and masks elsewhere."""
    batch, levels, known = prompt.ids.shape
    ids = prompt.ids.new_full((batch, levels, int(lengths.max())), mask)
    ids[:, :, :known] = prompt.ids.masked_fill(~prompt.mask[:, None], mask)
    return ids
