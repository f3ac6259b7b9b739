"""Options of the spectral codec. Imports no torch."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

from pydantic import Field, model_validator

from segue.core.spec import TokenSpec
from segue.plugins.layers.config import Layers, OddKernel
from segue.plugins.tokenizers.common.options import (
    AdversaryOptions,
    CodecLossWeights,
    TrainedCodecOptions,
    check_window,
)


class SpectralLossWeights(CodecLossWeights):
    """Weight the losses: how much one nat, or one unit of relative error, counts.

    Attributes:
        mel: L1 between log-mel spectra at several resolutions.
        log_magnitude: L1 between log STFT magnitudes at several resolutions.
        convergence: spectral convergence, the relative error of the magnitudes.
        complex_stft: L1 between compressed complex spectra, which includes phases.
        waveform: relative error of the wave. Without it no phase is coded: sound comes out in the
            right bands, but rough.
    """

    mel: float = Field(default=2.0, ge=0)
    log_magnitude: float = Field(default=0.3, ge=0)
    convergence: float = Field(default=0.5, ge=0)
    complex_stft: float = Field(default=3.0, ge=0)
    waveform: float = Field(default=0.5, ge=0)


class SpectralCodecOptions(TrainedCodecOptions):
    """Configure ``spectral_codec``; see ``TrainedCodecOptions`` for levels and codebooks.

    Attributes:
        hop: samples per frame.
        window: samples of the analysis and synthesis window, also the transform's size.
        width: channels of the encoder and decoder.
        expansion: width of a block's hidden layer, in multiples of ``width``.
        encoder_depth: blocks of the encoder.
        decoder_depth: blocks of the decoder.
        subframes: spectra that the decoder emits per frame; more than one resolves in time what
            the window blurs.
        kernel: frames that a block's convolution spans; odd.
        head: what the decoder emits per frequency and spectrum. ``complex``: a log magnitude that
            scales two parts, which follows the wave where bits allow; ``polar``: a log magnitude
            and a phase, as Vocos does.
        codebook_dim: channels D of the latent frames that are quantized.
        quantizer_bypass: share of training rows decoded from unquantized latents, so that the
            encoder and decoder learn before the codes are good (Mimi, arXiv 2410.00037).
    """

    of_training = TrainedCodecOptions.of_training | {"quantizer_bypass"}

    hop: int = Field(default=320, ge=2)
    window: int = Field(default=640, ge=4)
    width: int = Field(default=256, ge=4)
    expansion: int = Field(default=3, ge=1)
    encoder_depth: Layers = 4
    decoder_depth: Layers = 8
    subframes: int = Field(default=1, ge=1)
    kernel: OddKernel = 7
    head: Literal["complex", "polar"] = "complex"
    codebook_dim: int = Field(default=64, ge=1)
    quantizer_bypass: float = Field(default=0.0, ge=0, le=1)
    loss: SpectralLossWeights = SpectralLossWeights()
    adversary: AdversaryOptions = AdversaryOptions(
        wave_scales=(), stft_windows=(1024, 256), stft_channels=8, stft_residual=False, stretch=8000
    )

    @model_validator(mode="after")
    def _check_sizes(self) -> SpectralCodecOptions:
        if self.hop % self.subframes:
            raise ValueError(f"hop ({self.hop}) must be a multiple of subframes ({self.subframes})")
        for hop in (self.hop, self.hop // self.subframes):
            check_window("window", self.window, hop)
            if hop % 2:
                raise ValueError(f"hop ({hop}, per subframe) must be even")
        return self

    def spec(self) -> TokenSpec:
        rate = Fraction(self.sample_rate, self.hop)
        return TokenSpec(self.sample_rate, rate, self.num_levels, self.codebook_size)
