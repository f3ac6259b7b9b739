"""Options of the depth transformer. Imports no torch."""

from __future__ import annotations

from pydantic import Field, model_validator

from segue.plugins.layers.config import (
    CausalOptions,
    GivenOptions,
    Layers,
    TransformerOptions,
    check_heads,
)


class DepthTransformerOptions(CausalOptions, GivenOptions):
    """Options of ``depth_transformer``: of the transformer over frames, and of the one over levels.

    Attributes:
        level_width: D of the transformer over levels; None takes half of ``width``.
        level_depth: its layers.
        level_heads: its attention heads; None takes half of ``heads``.
        level_feed_forward: hidden width of its SwiGLU; None takes 8/3 of its width.
    """

    level_width: int | None = Field(default=None, ge=2)
    level_depth: Layers = 3
    level_heads: int | None = Field(default=None, ge=1)
    level_feed_forward: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _level_heads_divide_level_width(self) -> DepthTransformerOptions:
        check_heads(*self._level_shape, prefix="level_")
        return self

    @property
    def _level_shape(self) -> tuple[int, int]:
        """Width and heads of the transformer over levels."""
        heads = self.level_heads or max(1, self.heads // 2)
        multiple = 2 * heads
        return self.level_width or max(multiple, self.width // 2 // multiple * multiple), heads

    def over_levels(self) -> TransformerOptions:
        """Return the options of the transformer over levels."""
        width, heads = self._level_shape
        return TransformerOptions(
            width=width,
            depth=self.level_depth,
            heads=heads,
            feed_forward=self.level_feed_forward,
            dropout=self.dropout,
        )
