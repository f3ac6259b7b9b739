"""The spectral codec: STFT features, ConvNeXt blocks, residual quantization, inverse STFT.

The decoder predicts a magnitude and a phase per frequency and frame, as Vocos does (Siuzdak, arXiv
2306.00814), which on a CPU is one to two orders of magnitude cheaper than upsampling in the time
domain.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from segue.core.interfaces import (
    Ids,
    Lengths,
    Tokens,
    Wave,
    WaveBatch,
)
from segue.plugins.tokenizers.common.framing import Framing
from segue.plugins.tokenizers.common.quantizer import ResidualQuantizer
from segue.plugins.tokenizers.common.trained_codec import Attempt, TrainedCodec
from segue.plugins.tokenizers.spectral_codec.blocks import FrameStack
from segue.plugins.tokenizers.spectral_codec.config import SpectralCodecOptions
from segue.plugins.tokenizers.spectral_codec.losses import ReconstructionLoss
from segue.plugins.tokenizers.spectral_codec.spectral import features, polar, scaled

#: Numbers that the decoder emits per frequency, and what makes a spectrum of them.
HEADS = {"complex": (3, scaled), "polar": (2, polar)}
TYPICAL_LOG_MAGNITUDE = -7.0  # of speech: where an untrained decoder starts


class SpectralCodec(TrainedCodec):
    """Audio to Q residual levels of codes per frame, and back.

    Args:
        config: options.
    """

    config: SpectralCodecOptions

    def __init__(self, config: SpectralCodecOptions) -> None:
        super().__init__(config)
        bins = config.window // 2 + 1
        hidden = config.width * config.expansion
        parts, self._spectrum = HEADS[config.head]
        self.analysis = Framing(config.hop, config.window)
        self.synthesis = Framing(config.hop // config.subframes, config.window)
        self.encoder = FrameStack(
            3 * bins, config.codebook_dim, config.width, hidden, config.encoder_depth,
            config.kernel, first_kernel=1,
        )  # fmt: skip
        self.quantizer = ResidualQuantizer(
            config.num_levels, config.codebook_size, config.codebook_dim, config.codebook_decay,
            config.revive_below, config.quantizer_dropout, config.quantizer_bypass,
        )  # fmt: skip
        self.decoder = FrameStack(
            config.codebook_dim, parts * bins, config.width, hidden, config.decoder_depth,
            config.kernel, first_kernel=3, upsampling=config.subframes,
        )  # fmt: skip
        nn.init.constant_(self.decoder.leave.bias[:bins], TYPICAL_LOG_MAGNITUDE)
        self.losses = ReconstructionLoss(config.sample_rate, config.loss)
        fine = self.decoder.reach + self.synthesis.reach
        reach = self.decoder.first_reach + -(-fine // config.subframes)
        self.decode_context = (reach, reach)

    @torch.no_grad()
    def encode(self, wave: Wave, lengths: Lengths) -> Tokens:
        wave = wave * _mask(lengths, wave.shape[1])
        frames = -(-lengths // self.config.hop)
        mask = _mask(frames, -(-wave.shape[1] // self.config.hop))
        if mask.numel() == 0:
            return Tokens.empty(wave.shape[0], self.config.num_levels, wave.device)
        ids = self.quantizer.encode(self._latents(wave, mask))
        return Tokens(ids * mask[:, None].long(), frames)

    @torch.no_grad()
    def decode(self, codes: Ids, lengths: Lengths) -> Wave:
        if codes.shape[2] == 0:
            return torch.zeros(codes.shape[0], 0, device=codes.device)
        mask = _mask(lengths, codes.shape[2])
        return self._wave(self.quantizer.decode(codes), mask)

    @torch.no_grad()
    def vectors(self, ids: Ids) -> Float[Tensor, "B N D"]:
        return self.quantizer.decode(ids)

    def attempt(self, batch: WaveBatch) -> Attempt:
        wave = batch.wave * _mask(batch.lengths, batch.wave.shape[1])
        frames = -(-batch.lengths // self.config.hop)
        mask = _mask(frames, -(-wave.shape[1] // self.config.hop))
        quantized = self.quantizer(self._latents(wave, mask), mask)
        made = self._wave(quantized.latents, mask)[:, : wave.shape[1]]
        made = made * _mask(batch.lengths, wave.shape[1])
        parts = self.losses(made, wave)
        return Attempt(wave, made, quantized, mask, parts["reconstruction"], parts)

    def _latents(
        self, wave: Float[Tensor, "B T"], mask: Float[Tensor, "B N"]
    ) -> Float[Tensor, "B N D"]:
        with torch.no_grad():
            seen = features(self.analysis.analyse(wave)) * mask[..., None]
        latents: Tensor = self.encoder(seen, mask)
        return latents

    def _wave(
        self, latents: Float[Tensor, "B N D"], mask: Float[Tensor, "B N"]
    ) -> Float[Tensor, "B T"]:
        fine = mask.repeat_interleave(self.config.subframes, dim=1)
        spectra = self._spectrum(self.decoder(latents * mask[..., None], fine))
        return self.synthesis.synthesise(spectra, fine)


def _mask(lengths: Lengths, size: int) -> Float[Tensor, "B S"]:
    """1 below each row's length, 0 beyond."""
    return (torch.arange(size, device=lengths.device) < lengths[:, None]).float()
