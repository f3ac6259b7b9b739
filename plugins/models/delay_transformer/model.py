"""One step of the transformer draws the levels of a codebook pattern together.

MusicGen (Copet et al., arXiv 2306.05284). With the delay pattern, step s draws level q of frame
s - q for every q at once:

    step      0    1    2    3
    level 0   f0   f1   f2   f3
    level 1   -    f0   f1   f2      so level 1 of a frame is drawn with level 0 known,
    level 2   -    -    f0   f1      in one step per frame instead of one per token.

Shape legend: B rows asked for, R rows computed (more with guidance), Q levels, N frames, S steps,
D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from segue.core.interfaces import StageLM, Tokens
from segue.core.spec import StageSpec
from segue.plugins.layers.decoding import Decoder, HeadProducts
from segue.plugins.layers.drawing import StreamCall, generate_from_stream, stream_frames
from segue.plugins.layers.given import GivenEncoder
from segue.plugins.layers.guided import guided_loss
from segue.plugins.layers.heads import LevelEmbedding, LevelHeads
from segue.plugins.layers.native.frames import native_frames
from segue.plugins.layers.padding import left_padded
from segue.plugins.layers.stage import (
    States,
    causal_loss,
    causal_score,
    check_sampling,
    decode_with,
    end_odds,
    has_ring,
    make_end_head,
)
from segue.plugins.layers.transformer import Transformer, transformer_blocks
from segue.plugins.models.delay_transformer.config import DelayTransformerOptions
from segue.plugins.models.delay_transformer.pattern import Pattern


class DelayTransformer(StageLM):
    """Q heads. With one level and nothing given it is a plain autoregressive model."""

    config: DelayTransformerOptions
    loss, score, guided_loss = causal_loss, causal_score, guided_loss
    generate, stream = generate_from_stream, stream_frames
    check_sampling, decode_with = check_sampling, decode_with
    blocks, unbounded = transformer_blocks, property(has_ring)

    def __init__(self, config: DelayTransformerOptions, stage: StageSpec) -> None:
        super().__init__(config, stage)
        target, width = stage.target, config.width
        self.end_head = make_end_head(config, stage, width)
        self.pattern = Pattern.of(config, target.num_levels, f"stages.{stage.name}.lm.options")
        #: The input id for "no code of the pattern here"; it is never an output.
        self.outside = target.codebook_size
        self.embedding = LevelEmbedding(target.num_levels, target.codebook_size + 1, width)
        self.given_encoder = GivenEncoder.of(stage, config, width)
        self.transformer = Transformer(config, window=config.attention_window)
        self.heads = LevelHeads(target.num_levels, width, target.codebook_size)

    def _embed(
        self, grid: Int64[Tensor, "B Q S"], context: Float[Tensor, "B S D"] | None
    ) -> Float[Tensor, "B S D"]:
        """Embed the inputs of steps: the sum over levels, and the context of given slices."""
        x: Tensor = self.embedding(grid.transpose(1, 2)).sum(dim=2)
        return x if context is None else x + context

    def _by_step(self, context: Float[Tensor, "B N D"], steps: int) -> Float[Tensor, "B S D"]:
        """Repeat the context of each frame for its steps; zero after the last frame."""
        context = context.repeat_interleave(self.pattern.stride, dim=1)[:, :steps]
        return functional.pad(context, (0, 0, 0, steps - context.shape[1]))

    def forward(self, given: tuple[Tokens, ...], target: Tokens) -> States:
        """Return the state that predicts every target token, all steps in one pass."""
        frames, stride = target.ids.shape[2], self.pattern.stride
        # One step more than draws tokens may be needed to predict whether the audio ends.
        steps = max(self.pattern.num_steps(frames), stride * frames + 1)
        # Padding must look like the corner of the pattern, where there is no code either.
        codes = target.ids.masked_fill(~target.mask[:, None], self.outside)
        context = None
        if self.given_encoder is not None:
            context = self._by_step(self.given_encoder(given, target.lengths, frames), steps)
        x = self._embed(self.pattern.inputs(codes, steps, self.outside), context)
        positions = torch.arange(steps, device=x.device)[None].float()
        # Step s reads codes of steps before s only, so the causal mask over steps is all it takes.
        hidden = self.transformer(x, self.transformer.sight(positions))
        ends = end_odds(self.end_head, hidden[:, stride : stride * frames + 1 : stride])
        return self.pattern.by_frame(hidden, frames), ends

    def frames(self, call: StreamCall, num_frames: int) -> Iterator[Int64[Tensor, "B Q"]]:
        pattern, drawer, known = self.pattern, call.drawer, call.prompt.ids.shape[2]
        stride, steps = pattern.stride, pattern.num_steps(num_frames)
        first = stride * known  # the step that draws level 0 of the first new frame, for all rows
        codes, frames = left_padded(call.prompt, num_frames)
        codes = codes.masked_fill(frames[:, None, :known] < 0, self.outside)
        # New codes go in here.
        grid = pattern.inputs(codes, first + steps + 1, self.outside).contiguous()
        context = None
        if self.given_encoder is not None:
            lengths = call.prompt.lengths + num_frames
            context = self.given_encoder.at(call.given, lengths, frames)
            # As many columns as the grid has, though the last step reads none of the last one.
            context = self._by_step(context, first + steps + 1).contiguous()
        # Rows are padded on the left; their own steps count from 0.
        padding = stride * (known - call.prompt.lengths)[:, None]
        own = torch.arange(first + 1, device=grid.device) - padding
        start = None if context is None else context[:, : first + 1]
        x = self._embed(grid[:, :, : first + 1], start)
        decoder = Decoder(self.transformer, x, own, own >= 0, steps - 1, self.decoding)
        products = HeadProducts(self.heads, self.heads.weight, self.decoding)
        every = torch.arange(len(pattern.delays), device=grid.device)
        complete = torch.tensor(pattern.delays, device=grid.device) + first + 1
        levels = [
            [level for level, _ in pattern.drawn_in(step, num_frames)] for step in range(steps)
        ]
        native, hidden = None, decoder.hidden
        if self.end_head is None:
            native = native_frames(decoder, products, self.embedding, drawer, grid, context, levels)
        for step, some in enumerate(levels):
            if native is not None:
                next(native)
            else:
                if step:
                    x = self.embedding.summed(grid[:, :, first + step])
                    hidden = decoder.step(x if context is None else x + context[:, first + step])
                self._draw(call, step, some, hidden, products, grid[:, :, first + step + 1])
            # A frame is complete ``latency`` steps after its level 0.
            frame, rest = divmod(step - pattern.latency, stride)
            if rest == 0 and 0 <= frame < num_frames:
                if call.over(frame):
                    return
                yield grid[: call.rows, every, complete + stride * frame]

    def _draw(
        self,
        call: StreamCall,
        step: int,
        levels: Sequence[int],
        hidden: Float[Tensor, "R D"],
        products: HeadProducts,
        column: Int64[Tensor, "R Q"],
    ) -> None:
        """Draw the levels of a step into the column that the next step reads."""
        stride = self.pattern.stride
        if step % stride == 0:
            call.draw_ends(step // stride, self.end_head, hidden)
        if not levels:
            return
        logits = products.levels(hidden, levels[0], levels[-1] + 1)
        if logits.shape[1] > len(levels):  # a pattern with others between them
            logits = logits[:, [level - levels[0] for level in levels]]
        codes = call.drawer.draw_levels(logits, levels)
        if self.end_head is not None:  # as in training, nothing comes after the end
            frames = [(step - self.pattern.delays[level]) // stride for level in levels]
            codes[~call.reached(frames, codes)] = self.outside
        column[:, levels] = call.drawer.per_row(codes)
