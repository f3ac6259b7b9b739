"""Options of the spectral detector. Imports no torch."""

from __future__ import annotations

from pydantic import Field, PositiveInt

from segue.core.options import DetectorOptions


class SpectralDetectorOptions(DetectorOptions):
    """Configure ``spectral_detector``.

    Attributes:
        bands: mel bands.
        fft_size: samples of a spectrum's window; a power of two.
        hop_size: samples between spectra.
        channels: of each convolution; each halves time and frequency.
        dropout: share of the pooled features that is left out in training.
    """

    bands: int = Field(default=80, ge=16, le=256)
    fft_size: int = Field(default=512, ge=64, le=8192)
    hop_size: int = Field(default=160, ge=16, le=4096)
    channels: tuple[PositiveInt, ...] = Field(default=(24, 32, 48, 64), min_length=1, max_length=6)
    dropout: float = Field(default=0.2, ge=0.0, lt=1.0)
