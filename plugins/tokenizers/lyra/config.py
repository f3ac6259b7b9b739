"""Options of Lyra. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from segue.plugins.tokenizers.soundstream.config import SoundStreamOptions

MAX_LEVELS = 23


class LyraOptions(SoundStreamOptions):
    """Configure ``lyra``; its network is fixed, so most fields take one value only.

    Attributes:
        num_levels: residual levels Q of 256 codes, 400 bit/s each.
    """

    sample_rate: Literal[16000] = 16000
    num_levels: int = Field(default=8, ge=1, le=MAX_LEVELS)
    codebook_size: Literal[256] = 256
    channels: Literal[64] = 64
    strides: tuple[Literal[16], Literal[5], Literal[2], Literal[2]] = (16, 5, 2, 2)
    dilations: tuple[Literal[1], Literal[3], Literal[9]] = (1, 3, 9)
    kernel: Literal[3] = 3
    latent_dim: Literal[64] = 64
    weight_norm: Literal[False] = False
