"""Codebook patterns: which level of which frame is drawn in which step.

MusicGen (Copet et al., arXiv 2306.05284, section 2.2). Pure functions of shapes and codes.
Shape legend: B batch, Q levels, N frames, S steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from segue.core.errors import ConfigError
from segue.plugins.models.delay_transformer.config import DelayTransformerOptions


@dataclass(frozen=True)
class Pattern:
    """Level q of frame t is drawn in step ``stride * t + delays[q]``.

    Levels drawn in the same step do not see each other; everything from earlier steps is seen.
    """

    stride: int
    delays: tuple[int, ...]

    @classmethod
    def of(cls, options: DelayTransformerOptions, num_levels: int, place: str) -> Pattern:
        """Return the pattern that the options name.

        Raises:
            ConfigError: if a custom pattern has another number of levels.
        """
        if options.pattern == "parallel":
            return cls(1, (0,) * num_levels)
        if options.pattern == "delay":
            return cls(1, tuple(range(num_levels)))
        if options.pattern == "flattened":
            return cls(num_levels, tuple(range(num_levels)))
        delays = options.delays or ()
        if len(delays) != num_levels:
            problem = f"has {len(delays)} entries, but the stage predicts {num_levels} levels"
            raise ConfigError(f"{place}.delays", problem, "give one delay per level")
        return cls(options.stride, delays)

    @property
    def latency(self) -> int:
        """Number of steps after a frame's first one until all of its levels are drawn."""
        return max(self.delays)

    def num_steps(self, frames: int) -> int:
        """Return the number of steps that draw ``frames`` frames."""
        return self.stride * (frames - 1) + self.latency + 1

    def drawn_in(self, step: int, frames: int) -> list[tuple[int, int]]:
        """Return every ``(level, frame)`` drawn in a step, of the first ``frames`` frames."""
        found = []
        for level, delay in enumerate(self.delays):
            frame, rest = divmod(step - delay, self.stride)
            if rest == 0 and 0 <= frame < frames:
                found.append((level, frame))
        return found

    def inputs(
        self, codes: Int64[Tensor, "B Q N"], steps: int, outside: int
    ) -> Int64[Tensor, "B Q S"]:
        """Return the inputs of steps: codes drawn in the step before, and ``outside`` elsewhere."""
        batch, levels, frames = codes.shape
        width = max(steps, self.num_steps(max(1, frames)) + 1)
        grid = codes.new_full((batch, levels, width), outside)
        for level, delay in enumerate(self.delays):
            # One step later than it is drawn: a step reads what the step before it drew.
            first = delay + 1
            grid[:, level, first : first + self.stride * frames : self.stride] = codes[:, level]
        return grid[:, :, :steps]

    def by_frame(self, steps: Tensor, frames: int) -> Tensor:
        """Return ``[B, N, Q, ...]`` from ``[B, S, ...]``: the step that draws each code."""
        # Levels of one frame come from different steps: this brings them back side by side.
        index = torch.arange(frames, device=steps.device)[:, None] * self.stride
        return steps[:, index + torch.tensor(self.delays, device=steps.device)]
