"""What models with all tokens in one sequence share: given slices, then the target token by token.

AudioLM (Borsos et al., arXiv 2209.03143, section III-C): frame by frame and, within a frame, level
by level. Shape legend: B rows, R rows that are computed (with guidance 2 B), Q levels, N frames, L
positions of a sequence, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from segue.core.interfaces import Lengths, Tokens
from segue.plugins.layers.decoding import HeadProducts, take
from segue.plugins.layers.drawing import Drawer
from segue.plugins.layers.heads import LevelHeads
from segue.plugins.layers.stage import Endings, Likelihood, TransformerStageLM


def flattened(
    table: nn.Module, lead: Float[Tensor, " D"], tokens: Tokens
) -> tuple[Float[Tensor, "B L D"], Bool[Tensor, "B L"]]:
    """A leading embedding, then one slice, frame by frame and level by level; and what is valid."""
    batch, levels, _ = tokens.ids.shape
    x = table(tokens.ids.transpose(1, 2)).flatten(1, 2)
    x = torch.cat([lead.expand(batch, 1, -1), x], dim=1)
    valid = tokens.mask.repeat_interleave(levels, dim=1)
    return x, torch.cat([valid.new_ones(batch, 1), valid], dim=1)


class Stepper(Protocol):
    """A sequence that grows by one position of every row at a time.

    Attributes:
        hidden: ``[R, D]``, hidden state of the last position.
    """

    hidden: Tensor

    def step(self, x: Float[Tensor, "R D"]) -> Float[Tensor, "R D"]: ...


class FlattenedStageLM(TransformerStageLM):
    """One token per step; the input at target position j is token j - 1, or a learnt start."""

    heads: LevelHeads

    @abstractmethod
    def _begin(
        self, given: tuple[Tokens, ...], prompt: Tokens, steps: int, drawer: Drawer
    ) -> Stepper:
        """The rows to compute, up to the position that predicts the first new token.

        Args:
            steps: further positions there will be.
        """

    @abstractmethod
    def _embed_token(self, ids: Int64[Tensor, " R"], level: int) -> Float[Tensor, "R D"]:
        """Inputs for one target token of each row; level -1 is the last one."""

    def _read(self, hidden: Float[Tensor, "B L D"], start: Lengths, target: Tokens) -> Likelihood:
        """What the hidden states of whole rows say of the target.

        Args:
            start: ``[B]``, position of the learnt start, which predicts the first token.
        """
        _, levels, frames = target.ids.shape
        # One more than there are tokens: the last input predicts whether the audio ends. What a
        # short row takes from beyond its end is padding and masked by the caller.
        index = start[:, None] + torch.arange(frames * levels + 1, device=start.device)
        hidden = take(hidden, index.clamp_max(hidden.shape[1] - 1))
        by_level = hidden[:, :-1].unflatten(1, (frames, levels))
        ends = self._end_odds(hidden[:, levels::levels])
        return Likelihood(self.heads.nll(by_level, target.ids), ends)

    def _continue(
        self, given: tuple[Tokens, ...], prompt: Tokens, num_frames: int, drawer: Drawer
    ) -> Iterator[Tokens]:
        levels = self.stage.target.num_levels
        sequence = self._begin(given, prompt, num_frames * levels - 1, drawer)
        products = HeadProducts(self.heads, self.heads.weight, self.decoding, len(sequence.hidden))
        endings = Endings(len(prompt.lengths), num_frames)
        token = None
        for frame in range(num_frames):
            drawn = []
            for level in range(levels):
                if token is not None:
                    sequence.step(self._embed_token(drawer.per_row(token), level - 1))
                if level == 0:
                    self._draw_ends(endings, frame, sequence.hidden, prompt.lengths, drawer)
                    if endings.over(frame):
                        return
                token = drawer.draw(products(sequence.hidden, level))
                drawn.append(token)
            yield endings.piece(frame, torch.stack(drawn, dim=1)[:, :, None])
