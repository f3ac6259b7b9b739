"""One step of the transformer draws the levels of a codebook pattern together.

MusicGen (Copet et al., arXiv 2306.05284): with the delay pattern, step s predicts level q of frame
s - q for every q at once, so level q of a frame is drawn with levels below q known.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from segue.core.interfaces import Tokens
from segue.core.spec import StageSpec
from segue.plugins.layers.decoding import Decoder, HeadProducts, left_padded
from segue.plugins.layers.drawing import Drawer
from segue.plugins.layers.given import GivenEncoder
from segue.plugins.layers.heads import LevelEmbedding, LevelHeads
from segue.plugins.layers.stage import Endings, Likelihood, TransformerStageLM
from segue.plugins.layers.transformer import Transformer
from segue.plugins.models.delay_transformer.config import DelayTransformerOptions
from segue.plugins.models.delay_transformer.pattern import Pattern


class DelayTransformer(TransformerStageLM):
    """Q heads. With one level and nothing given it is a plain autoregressive model."""

    config: DelayTransformerOptions

    def __init__(self, config: DelayTransformerOptions, stage: StageSpec) -> None:
        super().__init__(config, stage, config.width)
        target, width = stage.target, config.width
        self.pattern = Pattern.of(config, target.num_levels, f"stages.{stage.name}.lm.options")
        #: The id that stands for "outside the pattern" in the input; it is never an output.
        self.outside = target.codebook_size
        self.embedding = LevelEmbedding(target.num_levels, target.codebook_size + 1, width)
        self.given_encoder = GivenEncoder.of(stage, config)
        self.transformer = Transformer(config, window=config.attention_window)
        self.heads = LevelHeads(target.num_levels, width, target.codebook_size)

    def _embed(
        self, grid: Int64[Tensor, "B Q S"], context: Float[Tensor, "B S D"] | None
    ) -> Float[Tensor, "B S D"]:
        """Step inputs; the context of a frame enters at the step that predicts its level 0."""
        x: Tensor = self.embedding(grid.transpose(1, 2)).sum(dim=2)
        return x if context is None else x + context

    def _by_step(self, context: Float[Tensor, "B N D"], steps: int) -> Float[Tensor, "B S D"]:
        """The context of each step's frame; zero after the last one."""
        context = context.repeat_interleave(self.pattern.stride, dim=1)[:, :steps]
        return functional.pad(context, (0, 0, 0, steps - context.shape[1]))

    def _likelihood(self, given: tuple[Tokens, ...], target: Tokens) -> Likelihood:
        frames, stride = target.ids.shape[2], self.pattern.stride
        steps = max(self.pattern.num_steps(frames), stride * frames + 1)
        codes = target.ids.masked_fill(~target.mask[:, None], self.outside)
        context = None
        if self.given_encoder is not None:
            context = self._by_step(self.given_encoder(given, target.lengths, frames), steps)
        x = self._embed(self.pattern.inputs(codes, steps, self.outside), context)
        positions = torch.arange(steps, device=x.device)[None].float()
        hidden = self.transformer(x, self.transformer.sight(positions))
        ends = self._end_odds(hidden[:, stride : stride * frames + 1 : stride])
        by_level = self.pattern.by_frame(hidden, frames)
        return Likelihood(self.heads.nll(by_level, target.ids), ends)

    def _continue(
        self, given: tuple[Tokens, ...], prompt: Tokens, num_frames: int, drawer: Drawer
    ) -> Iterator[Tokens]:
        """Prompts are padded on the left, so that the first new frame of all rows is the same."""
        stride, known = self.pattern.stride, prompt.ids.shape[2]
        steps, first = self.pattern.num_steps(num_frames), stride * known
        rows = drawer.rows(prompt)
        shifted, frames = left_padded(rows, num_frames)
        codes = shifted.masked_fill(frames[:, None, :known] < 0, self.outside)
        grid = self.pattern.inputs(codes, first + steps + 1, self.outside)
        context = None
        if self.given_encoder is not None:
            lengths = rows.lengths + num_frames
            context = self.given_encoder.at(drawer.given_rows(given), lengths, frames)
            context = self._by_step(context, first + steps)
        padding = known - rows.lengths
        own = torch.arange(first + 1, device=grid.device) - stride * padding[:, None]
        x = self._embed(grid[:, :, : first + 1], None if context is None
                        else context[:, : first + 1])  # fmt: skip
        decoder = Decoder(self.transformer, x, own, own >= 0, steps - 1, self.decoding)
        products = HeadProducts(self.heads, self.heads.weight, self.decoding, len(decoder.hidden))
        endings = Endings(len(prompt.lengths), num_frames)
        for step in range(steps):
            column = first + step
            if step:
                x = self.embedding(grid[:, None, :, column]).sum(dim=2)[:, 0]
                decoder.step(x if context is None else x + context[:, column])
            if step % stride == 0:
                frame = step // stride
                self._draw_ends(endings, frame, decoder.hidden, prompt.lengths, drawer)
            drawn = self.pattern.drawn_in(step, num_frames)
            if drawn:
                logits = torch.stack([products(decoder.hidden, q) for q, _ in drawn], dim=1)
                codes = drawer.draw_levels(logits)
                if self.end_head is not None:  # there is nothing after the end, as in training
                    codes[~endings.reached([frame for _, frame in drawn], codes)] = self.outside
                grid[:, [q for q, _ in drawn], column + 1] = drawer.per_row(codes)
            frame, rest = divmod(step - self.pattern.latency, stride)
            if rest == 0 and 0 <= frame < num_frames:
                if endings.over(frame):
                    return
                yield endings.piece(frame, self._frame(grid, known + frame, len(prompt.lengths)))

    def _frame(self, grid: Int64[Tensor, "R Q S"], frame: int, rows: int) -> Int64[Tensor, "B Q 1"]:
        """One frame out of the inputs by step."""
        columns = [self.pattern.stride * frame + delay + 1 for delay in self.pattern.delays]
        return grid[:rows, range(len(columns)), columns][:, :, None]
