"""Options of the three components. Imports no torch."""

from __future__ import annotations

from fractions import Fraction

from pydantic import Field

from segue.core.options import Options, TokenizerOptions
from segue.core.spec import TokenSpec


class LoudnessOptions(TokenizerOptions):
    """Options of ``toy_loudness``: a token is a loudness and a brightness, in ``steps`` each."""

    sample_rate: int = Field(default=16000, ge=4000, multiple_of=100)
    steps: int = Field(default=16, ge=2, le=64)

    def spec(self) -> TokenSpec:
        return TokenSpec(self.sample_rate, Fraction(25), 1, self.steps**2)


class MdctOptions(TokenizerOptions):
    """Options of ``toy_mdct``."""

    sample_rate: int = Field(default=16000, ge=6400, multiple_of=100)
    num_levels: int = Field(default=6, ge=1, le=8)

    def spec(self) -> TokenSpec:
        return TokenSpec(self.sample_rate, Fraction(50), self.num_levels, 1024)


class GruOptions(Options):
    """Options of ``toy_gru``."""

    width: int = Field(default=128, ge=1)
