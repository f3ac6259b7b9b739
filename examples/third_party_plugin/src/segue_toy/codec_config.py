"""Options of the codec. Imports no torch."""

from __future__ import annotations

from fractions import Fraction

from pydantic import Field

from segue.core.options import TokenizerOptions
from segue.core.spec import TokenSpec


class MdctOptions(TokenizerOptions):
    """Options of the codec.

    Attributes:
        sample_rate: samples per second.
        num_levels: residual levels; each adds one spectral line to a frame.
    """

    sample_rate: int = Field(default=16000, ge=6400, multiple_of=100)
    num_levels: int = Field(default=6, ge=1, le=8)

    def spec(self) -> TokenSpec:
        return TokenSpec(self.sample_rate, Fraction(50), self.num_levels, 1024)
