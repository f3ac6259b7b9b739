"""A temporal transformer steps once per frame; a small one draws the frame's levels.

RQ-Transformer (Lee et al., arXiv 2203.01941, section 3.2); as depth transformer in Moshi (Defossez
et al., arXiv 2410.00037, section 3.4.1).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from segue.core.interfaces import Tokens
from segue.core.spec import StageSpec
from segue.plugins.layers.decoding import Decoder, HeadProducts, left_padded
from segue.plugins.layers.drawing import Drawer
from segue.plugins.layers.given import GivenEncoder
from segue.plugins.layers.heads import LevelEmbedding, LevelHeads
from segue.plugins.layers.stage import Endings, Likelihood, TransformerStageLM
from segue.plugins.layers.transformer import INIT_STD, Transformer
from segue.plugins.models.depth_transformer.config import DepthTransformerOptions


class DepthTransformer(TransformerStageLM):
    """Level q of a frame is drawn knowing all earlier frames and the levels below q."""

    config: DepthTransformerOptions

    def __init__(self, config: DepthTransformerOptions, stage: StageSpec) -> None:
        super().__init__(config, stage, config.width)
        target, width, levels = stage.target, config.width, config.over_levels()
        self.embedding = LevelEmbedding(target.num_levels, target.codebook_size, width)
        self.start = nn.Parameter(torch.randn(width) * INIT_STD)
        self.given_encoder = GivenEncoder.of(stage, config)
        self.transformer = Transformer(config, window=config.attention_window)
        self.narrow = nn.Linear(width, levels.width, bias=False)
        self.level_embedding: LevelEmbedding | None = None
        if target.num_levels > 1:  # the last level is nobody's input
            self.level_embedding = LevelEmbedding(
                target.num_levels - 1, target.codebook_size, levels.width
            )
        self.level_transformer = Transformer(levels)
        self.heads = LevelHeads(target.num_levels, levels.width, target.codebook_size)

    def _inputs(
        self, codes: Int64[Tensor, "B Q N"], context: Float[Tensor, "B N+1 D"] | None
    ) -> Float[Tensor, "B N+1 D"]:
        """Temporal inputs: column t sees frame t - 1 and predicts frame t; the first sees none."""
        x: Tensor = self.embedding(codes.transpose(1, 2)).sum(dim=2)
        x = torch.cat([self.start.expand(len(x), 1, -1), x], dim=1)
        return x if context is None else x + context

    def _level_hidden(
        self, hidden: Float[Tensor, "M D"], codes: Int64[Tensor, "M Q"]
    ) -> Float[Tensor, "M Q d"]:
        """What predicts each level of M frames: from what precedes the frame, and lower levels."""
        levels = codes.shape[1]
        x = self.narrow(hidden)[:, None].expand(-1, levels, -1)
        if self.level_embedding is not None:
            lower = self.level_embedding(codes[:, None, :-1])[:, 0]
            x = x + functional.pad(lower, (0, 0, 1, 0))
        positions = torch.arange(levels, device=x.device)[None].float()
        transformer = self.level_transformer
        return transformer(x, transformer.sight(positions))  # type: ignore[no-any-return]

    def _likelihood(self, given: tuple[Tokens, ...], target: Tokens) -> Likelihood:
        batch, levels, frames = target.ids.shape
        context = None
        if self.given_encoder is not None:
            context = self.given_encoder(given, target.lengths, frames)
            context = functional.pad(context, (0, 0, 0, 1))
        x = self._inputs(target.ids, context)
        positions = torch.arange(frames + 1, device=x.device)[None].float()
        hidden = self.transformer(x, self.transformer.sight(positions))
        codes = target.ids.transpose(1, 2).reshape(batch * frames, levels)
        by_level = self._level_hidden(hidden[:, :-1].flatten(0, 1), codes)
        nll = self.heads.nll(by_level.view(batch, frames, levels, -1), target.ids)
        return Likelihood(nll, self._end_odds(hidden[:, 1:]))

    def _continue(
        self, given: tuple[Tokens, ...], prompt: Tokens, num_frames: int, drawer: Drawer
    ) -> Iterator[Tokens]:
        decoder, context = self._prefilled(given, prompt, num_frames, drawer)
        levels, known = self._level_decoder(decoder.hidden), prompt.ids.shape[2]
        products = HeadProducts(self.heads, self.heads.weight, self.decoding, len(decoder.hidden))
        endings = Endings(len(prompt.lengths), num_frames)
        for frame in range(num_frames):
            self._draw_ends(endings, frame, decoder.hidden, prompt.lengths, drawer)
            if endings.over(frame):
                return
            ids = self._draw_frame(decoder.hidden, levels, products, drawer)
            yield endings.piece(frame, ids[:, :, None])
            if frame + 1 < num_frames:
                x = self.embedding(drawer.per_row(ids)[:, None]).sum(dim=2)[:, 0]
                decoder.step(x if context is None else x + context[:, known + frame + 1])

    def _prefilled(
        self, given: tuple[Tokens, ...], prompt: Tokens, num_frames: int, drawer: Drawer
    ) -> tuple[Decoder, Float[Tensor, "R N D"] | None]:
        """A decoder that predicts the first new frame, and the context of all frames; prompts are
        padded on the left."""
        rows, known = drawer.rows(prompt), prompt.ids.shape[2]
        shifted, frame = left_padded(rows, num_frames)
        context = None
        if self.given_encoder is not None:
            lengths = rows.lengths + num_frames
            context = self.given_encoder.at(drawer.given_rows(given), lengths, frame)
        x = self._inputs(shifted, None)
        # The start stands before the first frame of each row, wherever its padding ends.
        first = frame[:, : known + 1] == 0
        x = torch.where(first[:, :, None], self.start.to(x.dtype), x)
        if context is not None:
            x = x + context[:, : known + 1]
        positions = frame[:, : known + 1]
        decoder = Decoder(
            self.transformer, x, positions, positions >= 0, num_frames - 1, self.decoding
        )
        return decoder, context

    def _level_decoder(self, like: Float[Tensor, "R D"]) -> Decoder:
        """Steps over the levels of a frame; rewound for each."""
        rows, levels = len(like), self.stage.target.num_levels
        empty = like.new_zeros(rows, 0, self.narrow.out_features)
        none = torch.zeros(rows, 0, device=like.device)
        return Decoder(self.level_transformer, empty, none, none.bool(), levels, self.decoding)

    def _draw_frame(
        self, hidden: Float[Tensor, "R D"], levels: Decoder, products: HeadProducts, drawer: Drawer
    ) -> Int64[Tensor, "B Q"]:
        levels.rewind()
        narrow = self.narrow(hidden)
        drawn: list[Tensor] = []
        for level in range(self.stage.target.num_levels):
            x = narrow
            if drawn:
                assert self.level_embedding is not None
                x = x + self.level_embedding.level(drawer.per_row(drawn[-1]), level - 1)
            drawn.append(drawer.draw(products(levels.step(x), level)))
        return torch.stack(drawn, dim=1)
