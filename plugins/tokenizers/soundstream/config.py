"""Options of SoundStream. Imports no torch."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated

from pydantic import Field, PositiveInt

from segue.core.spec import TokenSpec
from segue.plugins.tokenizers.common.options import CodecLossWeights, TrainedCodecOptions


class SoundStreamLossWeights(CodecLossWeights):
    """Weight the losses.

    The paper weights the first three by 1, 1 and 100, of sums whose averaging it does not state;
    here losses are means over batch, time, bins and resolutions.

    Attributes:
        reconstruction: distance of mel spectra at six resolutions.
    """

    reconstruction: float = Field(default=1.0, ge=0)


class SoundStreamOptions(TrainedCodecOptions):
    """Configure ``soundstream``; see ``TrainedCodecOptions`` for levels and codebooks.

    Attributes:
        channels: of the first layer; each strided one doubles them.
        strides: of the encoder's blocks, from the wave inwards; their product is the samples per
            frame. The decoder has them in reverse.
        dilations: of the residual units of each block.
        kernel: samples that the first and last layers and the dilated convolutions span.
        latent_dim: channels D of the latent frames that are quantized.
        weight_norm: parametrise convolutions by length and direction.
        kmeans_frames: frames to collect before a level's codes are placed by k-means; 0 places
            them on random frames of the first batch.
    """

    of_training = TrainedCodecOptions.of_training | {"kmeans_frames"}

    channels: int = Field(default=32, ge=1)
    strides: tuple[Annotated[int, Field(ge=2)], ...] = Field(default=(2, 4, 5, 8), min_length=1)
    dilations: tuple[PositiveInt, ...] = Field(default=(1, 3, 9), min_length=1)
    kernel: int = Field(default=7, ge=1)
    latent_dim: int = Field(default=128, ge=1)
    weight_norm: bool = False
    kmeans_frames: int = Field(default=0, ge=0)
    loss: SoundStreamLossWeights = SoundStreamLossWeights()

    @property
    def hop(self) -> int:
        """Return the samples per frame."""
        return math.prod(self.strides)

    def spec(self) -> TokenSpec:
        rate = Fraction(self.sample_rate, self.hop)
        return TokenSpec(self.sample_rate, rate, self.num_levels, self.codebook_size)
