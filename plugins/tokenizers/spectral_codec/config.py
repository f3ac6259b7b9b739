"""Options of the spectral codec. Imports no torch."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

from pydantic import Field, model_validator

from segue.core.spec import TokenSpec
from segue.plugins.tokenizers.common.options import (
    AdversaryOptions,
    CodecLossWeights,
    TrainedCodecOptions,
)


class LossWeights(CodecLossWeights):
    """What one nat, or one unit of relative error, of each training loss counts for.

    Attributes:
        mel: L1 between log-mel spectra at several resolutions.
        log_magnitude: L1 between log STFT magnitudes at several resolutions.
        convergence: spectral convergence, the relative error of the magnitudes.
        complex_stft: L1 between compressed complex spectra: keeps phases sane.
        waveform: relative error of the wave. Without it no phase is coded: sound comes out in the
            right bands, but rough.
    """

    mel: float = Field(default=2.0, ge=0)
    log_magnitude: float = Field(default=0.3, ge=0)
    convergence: float = Field(default=0.5, ge=0)
    complex_stft: float = Field(default=3.0, ge=0)
    waveform: float = Field(default=0.5, ge=0)


class SpectralCodecOptions(TrainedCodecOptions):
    """Options of ``spectral_codec``.

    Attributes:
        sample_rate: samples per second.
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
        num_levels: residual levels Q.
        codebook_size: codes per level V.
        codebook_dim: channels D of the latent frames that are quantized.
        codebook_decay: of the running means that are the codes.
        revive_below: a code used less than this fraction of an equal share is moved onto a frame
            of the batch.
        quantizer_dropout: share of training rows decoded from a random number of levels.
        quantizer_bypass: share of training rows decoded from the latents themselves, so that the
            encoder and decoder learn before the codes are good (Mimi, arXiv 2410.00037).
        loss: weights of the losses.
        adversary: the discriminators, if trained against any.
    """

    of_training = frozenset(
        {"codebook_decay", "revive_below", "quantizer_dropout", "quantizer_bypass", "loss",
         "adversary"}
    )  # fmt: skip

    sample_rate: int = Field(default=16000, ge=4000)
    hop: int = Field(default=320, ge=2)
    window: int = Field(default=640, ge=4)
    width: int = Field(default=256, ge=4)
    expansion: int = Field(default=3, ge=1)
    encoder_depth: int = Field(default=4, ge=1)
    decoder_depth: int = Field(default=8, ge=1)
    subframes: int = Field(default=1, ge=1)
    kernel: int = Field(default=7, ge=1)
    head: Literal["complex", "polar"] = "complex"
    num_levels: int = Field(default=12, ge=1)
    codebook_size: int = Field(default=1024, ge=2)
    codebook_dim: int = Field(default=64, ge=1)
    codebook_decay: float = Field(default=0.98, gt=0, lt=1)
    revive_below: float = Field(default=0.1, ge=0, lt=1)
    quantizer_dropout: float = Field(default=0.5, ge=0, le=1)
    quantizer_bypass: float = Field(default=0.0, ge=0, le=1)
    loss: LossWeights = LossWeights()
    adversary: AdversaryOptions = AdversaryOptions(
        wave_scales=(), stft_windows=(1024, 256), stft_channels=8, stft_residual=False, stretch=8000
    )

    @model_validator(mode="after")
    def _shapes_fit(self) -> SpectralCodecOptions:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd to look equally far both ways, not {self.kernel}")
        if self.hop % self.subframes:
            raise ValueError(f"hop ({self.hop}) must be a multiple of subframes ({self.subframes})")
        for hop in (self.hop, self.hop // self.subframes):
            if self.window < hop or self.window % 2 or hop % 2:
                raise ValueError(
                    f"window ({self.window}) and hop ({hop}, per subframe) must be even and window"
                    " at least hop"
                )
        return self

    def spec(self) -> TokenSpec:
        rate = Fraction(self.sample_rate, self.hop)
        return TokenSpec(self.sample_rate, rate, self.num_levels, self.codebook_size)
