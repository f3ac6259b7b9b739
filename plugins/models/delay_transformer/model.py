"""All levels of a frame in one step, each level delayed by one step more than the one before.

The delay pattern of MusicGen (Copet et al., arXiv 2306.05284): at step s the model predicts level q
of frame s - q for every q at once, so level q of a frame is drawn with levels below q known.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from segue.core.interfaces import Ids, Lengths, Tokens
from segue.core.options import Sampling
from segue.core.sampling import sample
from segue.core.spec import StageSpec
from segue.plugins.models.common.decoding import Decoder, take
from segue.plugins.models.common.heads import LevelEmbedding, LevelHeads
from segue.plugins.models.common.stage import TransformerStageLM
from segue.plugins.models.common.transformer import Transformer
from segue.plugins.models.delay_transformer.config import DelayTransformerOptions
from segue.plugins.models.delay_transformer.given import GivenEncoder


def delayed(codes: Int64[Tensor, "B Q N"], columns: int, outside: int) -> Int64[Tensor, "B Q S"]:
    """Inputs by step: column s holds, at level q, the code of frame s - 1 - q.

    Where there is no such frame it holds ``outside``.
    """
    batch, levels, frames = codes.shape
    grid = codes.new_full((batch, levels, columns + frames + levels), outside)
    for level in range(levels):
        grid[:, level, level + 1 : level + 1 + frames] = codes[:, level]
    return grid[:, :, :columns]


class DelayTransformer(TransformerStageLM):
    """One step per frame. With one level and nothing given it is a plain autoregressive model."""

    def __init__(self, config: DelayTransformerOptions, stage: StageSpec) -> None:
        super().__init__(config, stage)
        target, width = stage.target, config.width
        #: The id that stands for "outside the pattern" in the input; it is never an output.
        self.outside = target.codebook_size
        self.embedding = LevelEmbedding(target.num_levels, target.codebook_size + 1, width)
        self.given_encoder = (
            GivenEncoder(stage, width, config.given_kernel, config.given_blocks)
            if stage.given
            else None
        )
        self.transformer = Transformer(config)
        self.heads = LevelHeads(target.num_levels, width, target.codebook_size)

    def _context(
        self, given: tuple[Tokens, ...], lengths: Lengths, count: int
    ) -> Float[Tensor, "B N D"] | None:
        """What the given slices say about each target frame, if anything is given."""
        return None if self.given_encoder is None else self.given_encoder(given, lengths, count)

    def _embed(
        self, grid: Int64[Tensor, "B Q S"], context: Float[Tensor, "B N D"] | None
    ) -> Float[Tensor, "B S D"]:
        """Step inputs; the context of frame s enters at the step that predicts its level 0."""
        x: Tensor = self.embedding(grid.transpose(1, 2)).sum(dim=2)
        if context is None:
            return x
        return x + functional.pad(context, (0, 0, 0, max(0, x.shape[1] - context.shape[1])))

    def _nll(self, given: tuple[Tokens, ...], target: Tokens) -> Float[Tensor, "B Q N"]:
        levels, frames = target.ids.shape[1:]
        steps = frames + levels - 1
        codes = target.ids.masked_fill(~target.mask[:, None], self.outside)
        context = self._context(given, target.lengths, frames)
        x = self._embed(delayed(codes, steps, self.outside), context)
        positions = torch.arange(steps, device=x.device)[None].float()
        hidden = self.transformer(x, self.transformer.rotary(positions))
        undelayed = [hidden[:, level : level + frames] for level in range(levels)]
        return self.heads.nll(torch.stack(undelayed, dim=2), target.ids)

    def _continue(
        self,
        given: tuple[Tokens, ...],
        prompt: Tokens,
        num_frames: int,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
    ) -> Ids:
        """Prompts are padded on the left, so that the first new frame of all rows is the same."""
        batch, levels, known = prompt.ids.shape
        padding = known - prompt.lengths
        columns = torch.arange(known + num_frames, device=padding.device)
        frame = columns - padding[:, None]  # [B, known + num_frames], negative at padding
        steps = num_frames + levels - 1
        shifted = take(prompt.ids.transpose(1, 2), frame[:, :known].clamp_min(0)).transpose(1, 2)
        shifted = shifted.masked_fill(frame[:, None, :known] < 0, self.outside)
        grid = delayed(shifted, known + steps + 1, self.outside)
        context = self._context(given, prompt.lengths + num_frames, known + num_frames)
        if context is not None:
            context = take(context, frame.clamp_min(0))
            context = functional.pad(context, (0, 0, 0, levels))
        first = known + 1
        x = self._embed(grid[:, :, :first], None if context is None else context[:, :first])
        positions, valid = frame[:, :first], frame[:, :first] >= 0
        decoder = Decoder(self.transformer, x, positions, valid, steps - 1)
        for step in range(steps):
            column = known + step
            if step:
                x = self.embedding(grid[:, None, :, column]).sum(dim=2)
                decoder.step((x if context is None else x + context[:, column, None])[:, 0])
            # Level q draws frame ``step - q`` of the new ones; others are known or not wanted.
            low, high = max(0, step - num_frames + 1), min(levels, step + 1)
            logits = self.heads(decoder.hidden, low, high).flatten(0, 1)
            repeated = [g for g in generators for _ in range(high - low)]
            drawn = sample(logits, sampling, repeated).view(batch, high - low)
            grid[:, low:high, column + 1] = drawn
        rows = [grid[:, q, first + q : first + q + num_frames] for q in range(levels)]
        return torch.stack(rows, dim=1)
