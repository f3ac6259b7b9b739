"""Options that the k-means tokenizers share. Imports no torch."""

from __future__ import annotations

from fractions import Fraction

from pydantic import Field, model_validator

from segue.core.options import TokenizerOptions
from segue.core.spec import TokenSpec


class KMeansOptions(TokenizerOptions):
    """Options of a tokenizer that clusters features.

    Attributes:
        sample_rate: samples per second.
        frame_rate: tokens per second.
        subframes: spectra per token, which its features summarise.
        num_clusters: K, the codebook size.
        fit_frames: frames kept, drawn evenly from all that are seen, to fit the clusters on.
        seed: of the choice of frames and of the clustering.
    """

    sample_rate: int = Field(default=16000, ge=4000)
    frame_rate: int = Field(default=25, ge=1)
    subframes: int = Field(default=4, ge=1)
    num_clusters: int = Field(default=512, ge=2)
    fit_frames: int = Field(default=400_000, ge=2)
    seed: int = Field(default=0, ge=0, lt=2**32)

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


def check_window(name: str, window: int, hop: int) -> None:
    """Windows are centred on their hop, so both are even and the window is the longer one."""
    if window < hop or window % 2:
        raise ValueError(f"{name} ({window}) must be even and at least one hop ({hop}) long")
