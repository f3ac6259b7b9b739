"""AudioLM's stage model: a causal transformer over all tokens in one sequence.

Borsos et al., AudioLM, arXiv 2209.03143, section III-C: given slices as a prefix, then the target.
Levels are flattened: frame by frame and, within a frame, level by level. A stage that predicts two
acoustic levels from semantic tokens reads

    separator s0 s1 s2 ... start a00 a01 a10 a11 ... (a10: frame 1, level 0)

and each column from ``start`` on predicts the next token. The pieces of this file, in order: rows
are flattened and embedded (``_rows``), seen in one pass in training (``forward``), and continued
token by token in generation (``frames``).

Shape legend: B rows asked for, R rows computed (more with guidance), Q levels, N frames, L columns
of the sequence, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeVar, cast

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from segue.core.errors import ConfigError
from segue.core.interfaces import Lengths, StageLM, Tokens
from segue.core.spec import StageSpec
from segue.plugins.layers.decoding import Decoder, HeadProducts
from segue.plugins.layers.drawing import StreamCall, generate_from_stream, stream_frames
from segue.plugins.layers.guided import guided_loss
from segue.plugins.layers.heads import LevelEmbedding, LevelHeads
from segue.plugins.layers.padding import pack, take
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
from segue.plugins.models.flat_transformer.config import FlatTransformerOptions

#: Embedded columns ``[B, L, D]``, their positions ``[B, L]``, and which are valid ``[B, L]``.
Rows = tuple[Float[Tensor, "B L D"], Float[Tensor, "B L"], Bool[Tensor, "B L"]]
R = TypeVar("R", bound=tuple[Tensor, ...])


class FlatTransformer(StageLM):
    """A decoder-only transformer over the flattened sequence."""

    config: FlatTransformerOptions
    loss, score, guided_loss = causal_loss, causal_score, guided_loss
    generate, stream = generate_from_stream, stream_frames
    check_sampling, decode_with = check_sampling, decode_with
    blocks, unbounded = transformer_blocks, property(has_ring)

    def __init__(self, config: FlatTransformerOptions, stage: StageSpec) -> None:
        super().__init__(config, stage)
        target, width = stage.target, config.width
        self.end_head = make_end_head(config, stage, width)
        self.given_embeddings = nn.ModuleList(
            LevelEmbedding(given.num_levels, given.codebook_size, width) for given in stage.given
        )
        self.target_embedding = LevelEmbedding(target.num_levels, target.codebook_size, width)
        self.separators = nn.ParameterList(
            nn.Parameter(torch.randn(width) * INIT_STD) for _ in stage.given
        )
        self.start = nn.Parameter(torch.randn(width) * INIT_STD)
        if config.attention_window is not None and stage.given:
            raise ConfigError(
                f"stages.{stage.name}.lm.options.attention_window",
                f"is {config.attention_window}, but the stage is given a prefix, which would fall "
                "out of sight",
                "leave it out: the stage's crop_seconds bound what it sees",
            )
        self.transformer = Transformer(config, window=config.attention_window)
        self.heads = LevelHeads(target.num_levels, width, target.codebook_size)

    def _rows(self, given: tuple[Tokens, ...], target: Tokens) -> Rows:
        """Flatten and embed given slices and target, with padding after each slice.

        Positions count target tokens, and all that sounds at the same moment has the same
        position: what to look at in a given slice does not depend on how far the target has come.
        """
        parts = []
        for index, tokens in enumerate(given):
            x, valid = flatten(self.given_embeddings[index], self.separators[index], tokens)
            if self.config.given_repeats == "remove":
                repeats = tokens.repeats.repeat_interleave(tokens.num_levels, dim=1)
                valid = valid & ~functional.pad(repeats, (1, 0))
            per_frame = self.stage.frames_per_target_frame(index) * tokens.num_levels
            # The target has so many tokens in the time of one token of this slice.
            step = float(target.num_levels / per_frame)
            # The separator is one step before its slice, the first token of which is at 0.
            parts.append((x, step * _columns(x) - step, valid))
        x, valid = flatten(self.target_embedding, self.start, target)
        parts.append((x, _columns(x), valid))
        x, positions, valid = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        if self.config.positions == "sequence":
            positions = (valid.cumsum(1) - 1).float()
        return x, positions, valid

    def forward(self, given: tuple[Tokens, ...], target: Tokens) -> States:
        """Return the state that predicts every target token, all in one pass."""
        x, positions, valid = self._rows(given, target)
        # The prefix is ragged, so each row's target starts in a column of its own.
        own = 1 + target.num_levels * target.ids.shape[2]  # columns of start and target
        start = valid[:, :-own].sum(dim=1)
        # With padding on the right, the causal mask alone hides it: nothing valid looks ahead.
        # Without repeats to remove, rows stay as wide as they are: one shape to compile.
        narrow = self.config.given_repeats == "remove"
        x, positions, valid = packed((x, positions, valid), left=False, narrow=narrow)
        if self.config.positions == "sequence":  # equal for all rows, which then share one mask
            positions = _columns(x)
        hidden = self.transformer(x, self.transformer.sight(positions))
        return target_states(hidden, start, target, self.end_head)

    def frames(self, call: StreamCall, num_frames: int) -> Iterator[Int64[Tensor, "B Q"]]:
        """Draw frames, each token in a step of its own."""
        steps = num_frames * self.stage.target.num_levels - 1  # the last token is never read
        # With padding on the left, the last column of every row predicts its first new token.
        rows = packed(self._rows(call.given, call.prompt), left=True, narrow=True)
        decoder = Decoder(self.transformer, *rows, steps, self.decoding)
        products = HeadProducts(self.heads, self.heads.weight, self.decoding)
        table, end_head = self.target_embedding, self.end_head
        return frames_by_token(call, num_frames, decoder, table, products, end_head)


class Stepwise(Protocol):
    """Hold a prefix and take one position of every row per step."""

    hidden: Float[Tensor, "R D"]

    def step(self, x: Float[Tensor, "R D"]) -> Float[Tensor, "R D"]: ...


def frames_by_token(
    call: StreamCall,
    num_frames: int,
    sequence: Stepwise,
    embedding: LevelEmbedding,
    products: HeadProducts,
    end_head: nn.Linear | None,
) -> Iterator[Int64[Tensor, "B Q"]]:
    """Draw frames level by level, each token in a step of its own, until all rows have ended."""
    drawer, hidden, token = call.drawer, sequence.hidden, None
    for frame in range(num_frames):
        drawn = []
        for level in range(len(embedding.offsets)):
            if token is not None:
                # The token drawn last is of the level before; before level 0 that is the last
                # level of the frame before.
                hidden = sequence.step(embedding.level(drawer.per_row(token), level - 1))
            if level == 0:
                call.draw_ends(frame, end_head, hidden)
                if call.over(frame):
                    return
            token = drawer.draw(products(hidden, level), level)
            drawn.append(token)
        yield torch.stack(drawn, dim=1)


def flatten(
    table: nn.Module, lead: Float[Tensor, " D"], tokens: Tokens
) -> tuple[Float[Tensor, "B L D"], Bool[Tensor, "B L"]]:
    """Embed a slice frame by frame and level by level after a leading embedding.

    Returns:
        Embeddings and which of them are valid; L is 1 + N Q.
    """
    x = table(tokens.ids.transpose(1, 2)).flatten(1, 2)
    x = torch.cat([lead.expand(len(x), 1, -1), x], dim=1)
    # A frame is valid with all of its levels or with none: rows end between frames.
    valid = tokens.mask.repeat_interleave(tokens.num_levels, dim=1)
    return x, functional.pad(valid, (1, 0), value=True)


def packed(rows: R, left: bool, narrow: bool) -> R:
    """Move the padding of rows to one side; if ``narrow``, cut them to the longest one.

    Args:
        rows: tensors ``[B, L, ...]`` of which the last says what is valid.
    """
    valid = rows[-1]
    if bool(valid.all()):
        return rows
    order = pack(valid, left)
    if narrow:
        longest = int(valid.sum(dim=1).max())
        order = order[:, order.shape[1] - longest :] if left else order[:, :longest]
    return cast(R, tuple(take(part, order) for part in rows))


def target_states(
    hidden: Float[Tensor, "B L D"], start: Lengths, target: Tokens, end_head: nn.Linear | None
) -> States:
    """Return the states that predict a target from the hidden states of whole rows.

    Args:
        hidden: of the rows, padded on the right.
        start: ``[B]``, column of the learnt start, which predicts the first token.
        end_head: predicts whether the audio ends, or None.
    """
    _, levels, frames = target.ids.shape
    # One column more than there are tokens: the last one predicts whether the audio ends. A short
    # row reads beyond its end here; the caller masks that.
    index = start[:, None] + torch.arange(frames * levels + 1, device=start.device)
    hidden = take(hidden, index.clamp_max(hidden.shape[1] - 1))
    # Column i predicts token i, so that undoing the flattening sorts columns by frame and level.
    by_level = hidden[:, :-1].unflatten(1, (frames, levels))
    return by_level, end_odds(end_head, hidden[:, levels::levels])


def _columns(x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L"]:
    """Return 0, 1, 2, ... for every row."""
    return torch.arange(x.shape[1], dtype=torch.float32, device=x.device).expand(len(x), -1)
