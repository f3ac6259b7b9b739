"""Options of SoundStream. Imports no torch."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated

from pydantic import Field, PositiveInt

from segue.core.spec import TokenSpec
from segue.plugins.tokenizers.common.options import CodecLossWeights, TrainedCodecOptions


class LossWeights(CodecLossWeights):
    """What each training loss counts for.

    The paper's weights of the first three are 1, 1 and 100, of sums whose averaging it does not
    state; these are of means over batch, time, bins and resolutions.

    Attributes:
        reconstruction: distance of mel spectra at six resolutions.
    """

    reconstruction: float = Field(default=1.0, ge=0)


class SoundStreamOptions(TrainedCodecOptions):
    """Options of ``soundstream``.

    Attributes:
        sample_rate: samples per second.
        channels: C of the first layer; each strided one doubles them.
        strides: of the encoder's blocks, from the wave inwards; their product is the samples per
            frame. The decoder has them in reverse.
        dilations: of the residual units of each block.
        kernel: samples that a residual unit's dilated convolution spans, and the first and last
            layers'.
        latent_dim: channels D of the latent frames that are quantized.
        weight_norm: whether convolutions are parametrised by length and direction.
        num_levels: residual levels Q.
        codebook_size: codes per level V.
        codebook_decay: of the running means that are the codes.
        revive_below: a code used less than this fraction of an equal share is moved onto a frame
            of the batch.
        kmeans_frames: frames collected before a level's codes are placed by k-means; 0 places them
            on random frames of the first batch.
        quantizer_dropout: share of training rows decoded from a random number of levels.
        loss: weights of the losses.
        adversary: the discriminators, if trained against any.
    """

    of_training = frozenset(
        {"codebook_decay", "revive_below", "kmeans_frames", "quantizer_dropout", "loss",
         "adversary"}
    )  # fmt: skip

    sample_rate: int = Field(default=16000, ge=4000)
    channels: int = Field(default=32, ge=1)
    strides: tuple[Annotated[int, Field(ge=2)], ...] = Field(default=(2, 4, 5, 8), min_length=1)
    dilations: tuple[PositiveInt, ...] = Field(default=(1, 3, 9), min_length=1)
    kernel: int = Field(default=7, ge=1)
    latent_dim: int = Field(default=128, ge=1)
    weight_norm: bool = False
    num_levels: int = Field(default=12, ge=1)
    codebook_size: int = Field(default=1024, ge=2)
    codebook_decay: float = Field(default=0.98, gt=0, lt=1)
    revive_below: float = Field(default=0.1, ge=0, lt=1)
    kmeans_frames: int = Field(default=0, ge=0)
    quantizer_dropout: float = Field(default=0.5, ge=0, le=1)
    loss: LossWeights = LossWeights()

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return math.prod(self.strides)

    def spec(self) -> TokenSpec:
        rate = Fraction(self.sample_rate, self.hop)
        return TokenSpec(self.sample_rate, rate, self.num_levels, self.codebook_size)
