"""A temporal transformer takes one step per frame; a small one draws the levels of the frame.

RQ-Transformer (Lee et al., arXiv 2203.01941, section 3.2); called depth transformer in Moshi
(Defossez et al., arXiv 2410.00037, section 3.4.1).

Shape legend: B rows asked for, R rows computed (more with guidance), Q levels, N frames,
M frames of all rows, D width, d width of the transformer over levels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from segue.core.interfaces import StageLM, Tokens
from segue.core.spec import StageSpec
from segue.plugins.layers.decoding import Decoder, HeadProducts, row_by_row
from segue.plugins.layers.drawing import Drawer, StreamCall, generate_from_stream, stream_frames
from segue.plugins.layers.given import GivenEncoder
from segue.plugins.layers.guided import guided_loss
from segue.plugins.layers.heads import LevelEmbedding, LevelHeads
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
from segue.plugins.layers.transformer import INIT_STD, Transformer, transformer_blocks
from segue.plugins.models.depth_transformer.config import DepthTransformerOptions


class DepthTransformer(StageLM):
    """Level q of a frame is drawn from all earlier frames and the levels below q."""

    config: DepthTransformerOptions
    loss, score, guided_loss = causal_loss, causal_score, guided_loss
    generate, stream = generate_from_stream, stream_frames
    check_sampling, decode_with = check_sampling, decode_with
    blocks, unbounded = transformer_blocks, property(has_ring)

    def __init__(self, config: DepthTransformerOptions, stage: StageSpec) -> None:
        super().__init__(config, stage)
        target, width, levels = stage.target, config.width, config.over_levels()
        self.end_head = make_end_head(config, stage, width)
        self.embedding = LevelEmbedding(target.num_levels, target.codebook_size, width)
        self.start = nn.Parameter(torch.randn(width) * INIT_STD)
        self.given_encoder = GivenEncoder.of(stage, config, width)
        self.transformer = Transformer(config, window=config.attention_window)
        self.narrow = nn.Linear(width, levels.width, bias=False)
        self.level_embedding: LevelEmbedding | None = None
        if target.num_levels > 1:  # the last level is never an input
            self.level_embedding = LevelEmbedding(
                target.num_levels - 1, target.codebook_size, levels.width
            )
        self.level_transformer = Transformer(levels)
        self.heads = LevelHeads(target.num_levels, levels.width, target.codebook_size)

    def _inputs(self, codes: Int64[Tensor, "B Q N"]) -> Float[Tensor, "B N+1 D"]:
        """Embed temporal inputs: column t sees frame t - 1 and predicts frame t."""
        x: Tensor = self.embedding(codes.transpose(1, 2)).sum(dim=2)
        return torch.cat([self.start.expand(len(x), 1, -1), x], dim=1)

    def forward(self, given: tuple[Tokens, ...], target: Tokens) -> States:
        """Return the state that predicts every target token, in one pass of each transformer."""
        batch, levels, frames = target.ids.shape
        x = self._inputs(target.ids)
        if self.given_encoder is not None:
            context = self.given_encoder(given, target.lengths, frames)
            x = x + functional.pad(context, (0, 0, 0, 1))  # the last column predicts no frame
        positions = torch.arange(frames + 1, device=x.device)[None].float()
        hidden = self.transformer(x, self.transformer.sight(positions))
        # All frames become rows of the transformer over levels: none sees another one's levels.
        codes = target.ids.transpose(1, 2).reshape(batch * frames, levels)
        by_level = self._level_hidden(hidden[:, :-1].flatten(0, 1), codes)
        return by_level.view(batch, frames, levels, -1), end_odds(self.end_head, hidden[:, 1:])

    def _level_hidden(
        self, hidden: Float[Tensor, "M D"], codes: Int64[Tensor, "M Q"]
    ) -> Float[Tensor, "M Q d"]:
        """Return the state that predicts each level, from earlier frames and the levels below."""
        levels = codes.shape[1]
        x = self.narrow(hidden)[:, None].expand(-1, levels, -1)
        if self.level_embedding is not None:
            lower = self.level_embedding(codes[:, None, :-1])[:, 0]
            x = x + functional.pad(lower, (0, 0, 1, 0))
        positions = torch.arange(levels, device=x.device)[None].float()
        transformer = self.level_transformer
        return transformer(x, transformer.sight(positions))

    def frames(self, call: StreamCall, num_frames: int) -> Iterator[Int64[Tensor, "B Q"]]:
        rows, known = len(call.prompt.lengths), call.prompt.ids.shape[2]
        codes, frame_of = left_padded(call.prompt, num_frames)
        positions = frame_of[:, : known + 1]
        # Each row begins with the start, right after its padding on the left.
        first = (positions == 0)[:, :, None]
        x = self._inputs(codes)
        x = torch.where(first, self.start.to(x.dtype), x)
        context = None
        if self.given_encoder is not None:
            lengths = call.prompt.lengths + num_frames
            context = self.given_encoder.at(call.given, lengths, frame_of)
            x = x + context[:, : known + 1]
        decoder = Decoder(
            self.transformer, x, positions, positions >= 0, num_frames - 1, self.decoding
        )
        levels = self._level_decoder(rows, x)
        products = HeadProducts(self.heads, self.heads.weight, self.decoding)
        hidden, ids = decoder.hidden, None
        for frame in range(num_frames):
            if ids is not None:
                x = self.embedding(call.drawer.per_row(ids)[:, None]).sum(dim=2)[:, 0]
                hidden = decoder.step(x if context is None else x + context[:, known + frame])
            call.draw_ends(frame, self.end_head, hidden)
            if call.over(frame):
                return
            ids = self._draw_frame(hidden, levels, products, call.drawer)
            yield ids

    def _level_decoder(self, rows: int, like: Tensor) -> Decoder:
        """Return a decoder over the levels of a frame, to be rewound for each frame."""
        levels = self.stage.target.num_levels
        empty = like.new_zeros(rows, 0, self.narrow.out_features)
        none = torch.zeros(rows, 0, device=like.device)
        return Decoder(self.level_transformer, empty, none, none.bool(), levels, self.decoding)

    def _draw_frame(
        self, hidden: Float[Tensor, "R D"], levels: Decoder, products: HeadProducts, drawer: Drawer
    ) -> Int64[Tensor, "B Q"]:
        levels.rewind()
        narrow = row_by_row(self.narrow, hidden)
        drawn: list[Tensor] = []
        for level in range(self.stage.target.num_levels):
            x = narrow
            if drawn:
                assert self.level_embedding is not None
                x = x + self.level_embedding.level(drawer.per_row(drawn[-1]), level - 1)
            drawn.append(drawer.draw(products(levels.step(x), level), level))
        return torch.stack(drawn, dim=1)
