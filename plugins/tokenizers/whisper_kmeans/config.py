"""Options of the Whisper tokenizer. Imports no torch."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

from pydantic import Field, model_validator

from segue.core.spec import TokenSpec
from segue.plugins.layers.config import Layers, check_heads
from segue.plugins.tokenizers.common.options import WindowOptions

RATE = 16000  # that Whisper hears
HOP = 160
FRAME_RATE = 50  # of the encoder
LONGEST = 30.0  # seconds: what the encoder has positions for


class WhisperKMeansOptions(WindowOptions):
    """Options of ``whisper_kmeans``. The widths are those of Whisper base.

    Attributes:
        num_mels: bands of a spectrum.
        width: D, channels of the encoder.
        depth: blocks that are kept; the activations of the last one are clustered.
        heads: attention heads.
        pool: frames of the encoder per token, whose mean is clustered.
    """

    num_mels: Literal[80, 128] = 80
    width: int = Field(default=512, ge=2)
    depth: Layers = 4
    heads: int = Field(default=8, ge=1)
    pool: Literal[1, 2, 4] = 2
    window_seconds: float = Field(default=20.0, ge=1.0, le=LONGEST)

    @model_validator(mode="after")
    def _shapes_fit(self) -> WhisperKMeansOptions:
        check_heads(self.width, self.heads)
        return self

    def spec(self) -> TokenSpec:
        return TokenSpec(RATE, Fraction(FRAME_RATE, self.pool), 1, self.num_clusters)
