"""Options of the toy components. Imports no torch."""

from __future__ import annotations

from fractions import Fraction

from pydantic import Field

from segue.core.options import Options, TokenizerOptions
from segue.core.spec import TokenSpec

SAMPLE_RATE = 16_000


class LoudnessOptions(TokenizerOptions):
    """``steps`` of loudness times ``steps`` of zero-crossing rate."""

    frame_rate: int = Field(default=25, ge=1)
    steps: int = Field(default=8, ge=2)

    def spec(self) -> TokenSpec:
        return TokenSpec(SAMPLE_RATE, Fraction(self.frame_rate), 1, self.steps**2)


class DctOptions(TokenizerOptions):
    """Each level holds two coefficients of ``steps`` values each."""

    frame_rate: int = Field(default=50, ge=1)
    num_levels: int = Field(default=24, ge=1)
    steps: int = Field(default=32, ge=2)

    def spec(self) -> TokenSpec:
        return TokenSpec(SAMPLE_RATE, Fraction(self.frame_rate), self.num_levels, self.steps**2)


class GruOptions(Options):
    """``width`` of the network's state."""

    width: int = Field(default=128, ge=1)
