"""Options of the loudness metric; imports no torch."""

from __future__ import annotations

from pydantic import Field

from segue.core.options import Options


class LoudnessOptions(Options):
    scale: float = Field(default=1.0, gt=0, le=10)
    weights: dict[str, float] = Field(default_factory=dict)
