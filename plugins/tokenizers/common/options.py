"""Options that tokenizers share. Imports no torch."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated

from pydantic import Field, PositiveInt, model_validator

from segue.core.options import Options, TokenizerOptions
from segue.core.spec import TokenSpec


class ClusterOptions(TokenizerOptions):
    """Configure k-means over any features.

    Attributes:
        num_clusters: V, the codebook size.
        fit_frames: frames to fit the clusters on, drawn evenly from all; at most as many as take
            half a gigabyte.
        seed: of the choice of frames and of the clustering.
    """

    of_training = frozenset({"fit_frames", "seed"})
    of_fitting = frozenset({"num_clusters"})

    num_clusters: int = Field(default=512, ge=2)
    fit_frames: int = Field(default=400_000, ge=2)
    seed: int = Field(default=0, ge=0, lt=2**32)


class WindowOptions(ClusterOptions):
    """Configure a tokenizer that encodes each recording on its own, a long one in windows.

    Attributes:
        window_seconds: longer audio is encoded in windows of this length.
        margin_seconds: part of a window's overlap with its neighbours that is dropped.
    """

    window_seconds: float = Field(default=20.0, ge=1.0, le=600.0)
    margin_seconds: float = Field(default=2.0, ge=0.0)

    @model_validator(mode="after")
    def _check_margins(self) -> WindowOptions:
        if 2 * self.margin_seconds >= self.window_seconds:
            raise ValueError(
                f"window_seconds ({self.window_seconds:g}) must be more than two margins of"
                f" {self.margin_seconds:g}"
            )
        return self

    def frames(self, seconds: float) -> int:
        """Return how many tokens stand for a time."""
        return round(seconds * self.spec().frame_rate)


class KMeansOptions(ClusterOptions):
    """Configure a tokenizer that clusters features of spectra.

    Attributes:
        sample_rate: samples per second.
        frame_rate: tokens per second.
        subframes: spectra per token, which its features summarise.
    """

    sample_rate: int = Field(default=16000, ge=4000)
    frame_rate: int = Field(default=25, ge=1)
    subframes: int = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _check_frames(self) -> KMeansOptions:
        if self.sample_rate % (2 * self.frame_rate * self.subframes):
            raise ValueError(
                f"sample_rate ({self.sample_rate}) must be an even multiple of frame_rate x"
                f" subframes ({self.frame_rate} x {self.subframes})"
            )
        return self

    @property
    def hop(self) -> int:
        """Return the samples from one spectrum to the next, an even number."""
        return self.sample_rate // (self.frame_rate * self.subframes)

    def spec(self) -> TokenSpec:
        return TokenSpec(self.sample_rate, Fraction(self.frame_rate), 1, self.num_clusters)


class AdversaryOptions(Options):
    """Configure the discriminators to train a codec against, by default SoundStream's.

    There are none if both ``wave_scales`` and ``stft_windows`` are empty.

    Attributes:
        wave_scales: one wave discriminator each: how many samples it averages over first.
        wave_channels: of the first layer of a wave discriminator.
        stft_windows: one STFT discriminator each: samples of its window. Several make the
            multi-scale discriminator of EnCodec (arXiv 2210.13438).
        stft_channels: of the first layer of an STFT discriminator.
        stft_residual: True for residual networks, as in SoundStream; False for EnCodec's dilated
            convolutions of constant width, which cost less.
        stretch: samples of each crop to judge, at a random place; 0 for all. Discriminators take
            most of the time of a step on a CPU.
    """

    wave_scales: tuple[PositiveInt, ...] = (1, 2, 4)
    wave_channels: int = Field(default=16, ge=1)
    stft_windows: tuple[Annotated[int, Field(ge=64, multiple_of=4)], ...] = (1024,)
    stft_channels: int = Field(default=32, ge=1)
    stft_residual: bool = True
    stretch: int = Field(default=0, ge=0)

    @property
    def none(self) -> bool:
        """Return whether there is no discriminator: training is by reconstruction only."""
        return not self.wave_scales and not self.stft_windows


class CodecLossWeights(Options):
    """Weight the losses that all trained codecs have.

    Attributes:
        commitment: distance of the encoder's output to the codes it was given.
        adversarial: hinge loss of the decoded wave against the discriminators.
        feature_matching: relative distance of the discriminators' feature maps.
    """

    commitment: float = Field(default=0.25, ge=0)
    adversarial: float = Field(default=0.1, ge=0)
    feature_matching: float = Field(default=0.2, ge=0)


class TrainedCodecOptions(TokenizerOptions):
    """Configure a codec that Segue trains.

    Attributes:
        sample_rate: samples per second.
        num_levels: residual levels Q.
        codebook_size: codes per level V.
        codebook_decay: of the running means that are the codes.
        revive_below: share of an equal share of uses; a code used less moves to a frame of the
            batch.
        quantizer_dropout: share of training rows decoded from a random number of levels.
        loss: weights of the losses.
        adversary: discriminators, if any.
    """

    of_training = frozenset(
        {"codebook_decay", "revive_below", "quantizer_dropout", "loss", "adversary"}
    )

    sample_rate: int = Field(default=16000, ge=4000)
    num_levels: int = Field(default=12, ge=1)
    codebook_size: int = Field(default=1024, ge=2)
    codebook_decay: float = Field(default=0.98, gt=0, lt=1)
    revive_below: float = Field(default=0.1, ge=0, lt=1)
    quantizer_dropout: float = Field(default=0.5, ge=0, le=1)
    loss: CodecLossWeights = CodecLossWeights()
    adversary: AdversaryOptions = AdversaryOptions()


def check_window(name: str, window: int, hop: int) -> None:
    """Refuse a window that cannot be centred on its hop: both are even, the window is longer."""
    if window < hop or window % 2:
        raise ValueError(f"{name} ({window}) must be even and at least one hop ({hop}) long")
