"""Step-by-step decoding of rows of unequal length over one key-value cache."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from segue.plugins.models.common.cache import KeyValueCache
from segue.plugins.models.common.transformer import Mask, Transformer


def pack(valid: Bool[Tensor, "B N"], left: bool) -> Int64[Tensor, "B N"]:
    """For every row, the order that moves padding to one side and keeps the rest in sequence.

    Args:
        valid: ``[B, N]``, False at padding, wherever it lies.
        left: padding goes to the left (for generation: all rows end in the same column), else to
            the right (for training: causal attention then needs no mask).
    """
    return (valid if left else ~valid).to(torch.uint8).argsort(dim=1, stable=True)


def take(x: Tensor, order: Int64[Tensor, "B N"]) -> Tensor:
    """``x`` ``[B, K, ...]`` at ``order`` ``[B, N]``, row by row."""
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    return x[rows, order]


def prefill_mask(valid: Bool[Tensor, "B N"]) -> Mask:
    """Causal mask ``[B, 1, N, N]`` that hides padding.

    A padded position sees itself, as a softmax over nothing is not a number.
    """
    count = valid.shape[1]
    causal = torch.ones(count, count, dtype=torch.bool, device=valid.device).tril()
    itself = torch.eye(count, dtype=torch.bool, device=valid.device)
    return ((causal & valid[:, None, :]) | itself)[:, None]


class Decoder:
    """A prefilled transformer that takes one position of every row per step.

    Args:
        transformer: in eval mode.
        x: ``[B, N, D]`` embedded prefix; padding on the left.
        positions: ``[B, N]``.
        valid: ``[B, N]``, False at padding.
        steps: further positions there is room for; each is 1 after the one before.
    """

    def __init__(
        self,
        transformer: Transformer,
        x: Float[Tensor, "B N D"],
        positions: Float[Tensor, "B N"],
        valid: Bool[Tensor, "B N"],
        steps: int,
    ) -> None:
        count = x.shape[1]
        self._transformer = transformer
        self._cache = KeyValueCache(len(transformer.blocks), count + steps)
        self._start = count
        later = torch.arange(1, steps + 1, device=x.device)
        # All later angles at once: a step then only slices.
        self._cosine, self._sine = transformer.rotary(positions[:, -1:] + later)
        self._mask: Tensor | None = None
        mask = None
        if not bool(valid.all()):
            mask = prefill_mask(valid)
            ones = valid.new_ones(valid.shape[0], steps)
            self._mask = torch.cat([valid, ones], dim=1)[:, None, None]
        rotary = transformer.rotary(positions)
        #: ``[B, D]``, hidden state of the last position.
        self.hidden: Tensor = transformer(x, rotary, mask, self._cache)[:, -1]

    def step(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Hidden state of one more position of every row."""
        length = self._cache.length
        at = length - self._start
        rotary = self._cosine[:, at : at + 1], self._sine[:, at : at + 1]
        mask = None if self._mask is None else self._mask[..., : length + 1]
        self.hidden = self._transformer(x[:, None], rotary, mask, self._cache)[:, 0]
        return self.hidden
