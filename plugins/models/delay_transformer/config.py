"""Options of the delay transformer. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, model_validator

from segue.plugins.layers.config import CausalOptions, GivenOptions


class DelayTransformerOptions(CausalOptions, GivenOptions):
    """Options of ``delay_transformer``.

    Attributes:
        pattern: the step in which each level of a frame is drawn (MusicGen, arXiv 2306.05284,
            section 2.2). ``delay``: each level one step after the one before; ``parallel``: all
            levels of a frame in one step; ``flattened``: one level per step; ``custom``: level q
            of frame t in step ``stride * t + delays[q]``.
        stride: steps per frame of a custom pattern.
        delays: one per level of a custom pattern, the smallest being 0.
    """

    pattern: Literal["delay", "parallel", "flattened", "custom"] = "delay"
    stride: int = Field(default=1, ge=1)
    delays: tuple[NonNegativeInt, ...] | None = None

    @model_validator(mode="after")
    def _only_custom_patterns_have_delays(self) -> DelayTransformerOptions:
        custom = self.delays is not None or self.stride != 1
        if self.pattern != "custom" and custom:
            raise ValueError(
                f"stride and delays belong to pattern 'custom', not to {self.pattern!r}; "
                "set pattern: custom or leave them out"
            )
        if self.pattern == "custom" and (not self.delays or min(self.delays)):
            raise ValueError(
                f"a custom pattern needs delays of which the smallest is 0, not {self.delays}"
            )
        return self
