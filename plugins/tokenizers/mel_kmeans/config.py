"""Options of the mel k-means tokenizer. Imports no torch."""

from __future__ import annotations

from pydantic import Field, model_validator

from segue.plugins.tokenizers.common.options import KMeansOptions, check_window


class MelKMeansOptions(KMeansOptions):
    """Configure ``mel_kmeans``.

    Attributes:
        window: samples of the spectra's window.
        num_mels: mel bands.
        num_cepstra: cepstral coefficients, without the zeroth, which is loudness.
        slope_reach: spectra to either side of a token over which slopes are taken as well.
        remove_mean: subtract each recording's mean, which removes much of voice and channel.
    """

    window: int = Field(default=400, ge=4)
    num_mels: int = Field(default=40, ge=2)
    num_cepstra: int = Field(default=13, ge=1)
    slope_reach: int = Field(default=4, ge=1)
    remove_mean: bool = True

    @model_validator(mode="after")
    def _check_sizes(self) -> MelKMeansOptions:
        check_window("window", self.window, self.hop)
        if self.num_cepstra >= self.num_mels:
            raise ValueError(
                f"num_cepstra ({self.num_cepstra}) must be less than num_mels ({self.num_mels})"
            )
        return self
