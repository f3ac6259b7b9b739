"""Options of the semantic tokenizer. Imports no torch."""

from __future__ import annotations

from fractions import Fraction

from pydantic import Field

from segue.core.options import TokenizerOptions
from segue.core.spec import TokenSpec


class LoudnessOptions(TokenizerOptions):
    """Options of the tokenizer.

    Attributes:
        sample_rate: samples per second.
        steps: of loudness and of brightness; a token is one of each.
    """

    sample_rate: int = Field(default=16000, ge=4000, multiple_of=100)
    steps: int = Field(default=16, ge=2, le=64)

    def spec(self) -> TokenSpec:
        return TokenSpec(self.sample_rate, Fraction(25), 1, self.steps**2)
