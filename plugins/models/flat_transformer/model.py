"""AudioLM's stage model: all tokens in one sequence, one step per token.

Borsos et al., AudioLM, arXiv 2209.03143, section III-C: given slices as a prefix, then the target
frame by frame and, within a frame, level by level.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from segue.core.errors import ConfigError
from segue.core.interfaces import Tokens
from segue.core.spec import StageSpec
from segue.plugins.layers.decoding import Decoder, pack, take
from segue.plugins.layers.drawing import Drawer
from segue.plugins.layers.flattened import FlattenedStageLM, Stepper, flattened
from segue.plugins.layers.heads import LevelEmbedding, LevelHeads
from segue.plugins.layers.stage import Likelihood
from segue.plugins.layers.transformer import INIT_STD, Transformer
from segue.plugins.models.flat_transformer.config import FlatTransformerOptions


@dataclass(frozen=True)
class Sequences:
    """Embedded rows: ``x`` [B, N, D], ``positions`` [B, N], ``valid`` [B, N].

    What is not valid is padding, or a repeat that is left out, wherever it lies.
    """

    x: Float[Tensor, "B N D"]
    positions: Float[Tensor, "B N"]
    valid: Bool[Tensor, "B N"]

    def packed(self, left: bool, narrow: bool) -> Sequences:
        """The same rows with all padding on one side; if ``narrow``, as wide as the longest."""
        if bool(self.valid.all()):
            return self
        order = pack(self.valid, left)
        if narrow:
            width = int(self.valid.sum(dim=1).max())
            order = order[:, order.shape[1] - width :] if left else order[:, :width]
        parts = (self.x, self.positions, self.valid)
        return Sequences(*(take(part, order) for part in parts))


class FlatTransformer(FlattenedStageLM):
    """A decoder-only transformer over the flattened sequence."""

    config: FlatTransformerOptions

    def __init__(self, config: FlatTransformerOptions, stage: StageSpec) -> None:
        super().__init__(config, stage, config.width)
        target, width = stage.target, config.width
        self.time_positions = config.positions == "time"
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

    def _part(
        self, embedding: nn.Module, lead: Tensor, tokens: Tokens, step: float, first: float
    ) -> Sequences:
        """A leading embedding, then one slice flattened, frame by frame and level by level.

        Args:
            step: distance in position between two tokens.
            first: position of the leading embedding; the first token is at 0 or, in the target,
                one step after it.
        """
        x, valid = flattened(embedding, lead, tokens)
        positions = first + step * torch.arange(x.shape[1], device=x.device)
        return Sequences(x, positions.expand(len(x), -1), valid)

    def _without_repeats(self, part: Sequences, tokens: Tokens) -> Sequences:
        """The same, with repeated frames marked as not valid, if they are to be left out."""
        if self.config.given_repeats == "keep":
            return part
        repeats = functional.pad(tokens.repeats.repeat_interleave(tokens.num_levels, dim=1), (1, 0))
        return replace(part, valid=part.valid & ~repeats)

    def _sequences(self, given: tuple[Tokens, ...], target: Tokens) -> Sequences:
        """Given slices and target, not yet packed. A position of 1 is one target token."""
        levels = self.stage.target.num_levels
        parts = []
        for index, (tokens, spec) in enumerate(zip(given, self.stage.given, strict=True)):
            per_frame = self.stage.frames_per_target_frame(index)
            step = float(levels / (per_frame * spec.num_levels))
            lead = self.separators[index]
            part = self._part(self.given_embeddings[index], lead, tokens, step, -step)
            parts.append(self._without_repeats(part, tokens))
        parts.append(self._part(self.target_embedding, self.start, target, 1.0, 0.0))
        valid = torch.cat([part.valid for part in parts], dim=1)
        if self.time_positions:
            positions = torch.cat([part.positions for part in parts], dim=1)
        else:
            positions = (valid.cumsum(1) - 1).float()
        return Sequences(torch.cat([part.x for part in parts], dim=1), positions, valid)

    def _likelihood(self, given: tuple[Tokens, ...], target: Tokens) -> Likelihood:
        rows = self._sequences(given, target)
        own = 1 + target.ids.shape[1] * target.ids.shape[2]  # positions of the target, start first
        start = rows.valid[:, :-own].sum(dim=1)
        # Without repeats to leave out crops stay as wide as they are: one shape to compile.
        rows = rows.packed(left=False, narrow=self.config.given_repeats == "remove")
        positions = rows.positions
        if not self.time_positions:  # the same for all rows, which then share what depends on them
            positions = torch.arange(positions.shape[1], device=start.device).expand_as(positions)
        hidden = self.transformer(rows.x, self.transformer.sight(positions.float()))
        return self._read(hidden, start, target)

    def _begin(
        self, given: tuple[Tokens, ...], prompt: Tokens, steps: int, drawer: Drawer
    ) -> Stepper:
        rows = self._sequences(drawer.given_rows(given), drawer.rows(prompt)).packed(
            left=True, narrow=True
        )
        return Decoder(self.transformer, rows.x, rows.positions, rows.valid, steps, self.decoding)

    def _embed_token(self, ids: Int64[Tensor, " R"], level: int) -> Float[Tensor, "R D"]:
        return self.target_embedding.level(ids, level)
