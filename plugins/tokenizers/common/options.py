"""Options that tokenizers share. Imports no torch."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated

from pydantic import Field, PositiveInt, model_validator

from segue.core.options import Options, TokenizerOptions
from segue.core.spec import TokenSpec


class ClusterOptions(TokenizerOptions):
    """Options of k-means over any features.

    Attributes:
        num_clusters: K, the codebook size.
        fit_frames: frames kept, drawn evenly from all that are seen, to fit the clusters on.
        seed: of the choice of frames and of the clustering.
    """

    of_training = frozenset({"fit_frames", "seed"})
    of_fitting = frozenset({"num_clusters"})

    num_clusters: int = Field(default=512, ge=2)
    fit_frames: int = Field(default=400_000, ge=2)
    seed: int = Field(default=0, ge=0, lt=2**32)


class KMeansOptions(ClusterOptions):
    """Options of a tokenizer that clusters features of spectra.

    Attributes:
        sample_rate: samples per second.
        frame_rate: tokens per second.
        subframes: spectra per token, which its features summarise.
    """

    sample_rate: int = Field(default=16000, ge=4000)
    frame_rate: int = Field(default=25, ge=1)
    subframes: int = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _frames_are_whole(self) -> KMeansOptions:
        if self.sample_rate % (2 * self.frame_rate * self.subframes):
            raise ValueError(
                f"sample_rate ({self.sample_rate}) must be an even multiple of frame_rate x"
                f" subframes ({self.frame_rate} x {self.subframes})"
            )
        return self

    @property
    def hop(self) -> int:
        """Samples from one spectrum to the next; even."""
        return self.sample_rate // (self.frame_rate * self.subframes)

    def spec(self) -> TokenSpec:
        return TokenSpec(self.sample_rate, Fraction(self.frame_rate), 1, self.num_clusters)


class AdversaryOptions(Options):
    """The discriminators that the codec is trained against: the paper's by default; none if both
    ``wave_scales`` and ``stft_windows`` are empty.

    Attributes:
        wave_scales: the wave is averaged over so many samples for each wave discriminator.
        wave_channels: of the first layer of a wave discriminator.
        stft_windows: samples of the window of each STFT discriminator; several make the multi-scale
            one of EnCodec (arXiv 2210.13438).
        stft_channels: of the first layer of an STFT discriminator.
        stft_residual: whether they are residual networks, as in the paper, or EnCodec's dilated
            convolutions of constant width, which cost less.
        stretch: samples of each crop that they judge, at a random place; 0 for all. Most of a step
            on a CPU goes into them.
    """

    wave_scales: tuple[PositiveInt, ...] = (1, 2, 4)
    wave_channels: int = Field(default=16, ge=1)
    stft_windows: tuple[Annotated[int, Field(ge=64, multiple_of=4)], ...] = (1024,)
    stft_channels: int = Field(default=32, ge=1)
    stft_residual: bool = True
    stretch: int = Field(default=0, ge=0)

    @property
    def none(self) -> bool:
        """Whether there is no discriminator: training is for reconstruction only."""
        return not self.wave_scales and not self.stft_windows


class CodecLossWeights(Options):
    """What the losses count for that every codec has that is trained here.

    Attributes:
        commitment: pull of the encoder towards the codes it was given.
        adversarial: hinge loss of the decoded wave against the discriminators.
        feature_matching: relative distance of the discriminators' feature maps.
    """

    commitment: float = Field(default=0.25, ge=0)
    adversarial: float = Field(default=0.1, ge=0)
    feature_matching: float = Field(default=0.2, ge=0)


class TrainedCodecOptions(TokenizerOptions):
    """Options of a codec that is trained here.

    Attributes:
        loss: weights of the losses.
        adversary: the discriminators, if trained against any.
    """

    loss: CodecLossWeights = CodecLossWeights()
    adversary: AdversaryOptions = AdversaryOptions()


def check_window(name: str, window: int, hop: int) -> None:
    """Windows are centred on their hop, so both are even and the window is the longer one."""
    if window < hop or window % 2:
        raise ValueError(f"{name} ({window}) must be even and at least one hop ({hop}) long")
