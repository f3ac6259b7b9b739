"""The spectral codec: STFT features, ConvNeXt blocks, residual quantization, inverse STFT.

The decoder predicts a spectrum per frame, as Vocos does (Siuzdak, arXiv 2306.00814), which on a CPU
costs 10 to 100 times less than upsampling in the time domain.

Shape legend: B batch, T samples, N frames, Q levels, D latent channels.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from segue.core.interfaces import Ids, Lengths, Tokens, Wave, WaveBatch
from segue.plugins.layers.lengths import length_mask, without_padding
from segue.plugins.tokenizers.common.codec import Attempt, TrainedCodec
from segue.plugins.tokenizers.common.quantizer import ResidualQuantizer
from segue.plugins.tokenizers.common.spectra import Framing
from segue.plugins.tokenizers.spectral_codec.config import SpectralCodecOptions
from segue.plugins.tokenizers.spectral_codec.losses import ReconstructionLoss
from segue.plugins.tokenizers.spectral_codec.network import HEADS, FrameStack, features

TYPICAL_LOG_MAGNITUDE = -7.0  # of speech: where an untrained decoder starts


class SpectralCodec(TrainedCodec):
    """Encode audio to Q residual levels of codes per frame, and decode it."""

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
        # Convolutions and overlapping windows reach this many frames to either side: the context
        # that a streamed decoder needs.
        fine = self.decoder.reach + self.synthesis.reach
        reach = self.decoder.first_reach + -(-fine // config.subframes)
        self.decode_context = (reach, reach)

    @torch.no_grad()
    def encode(self, wave: Wave, lengths: Lengths) -> Tokens:
        frames = -(-lengths // self.config.hop)
        mask = self._frame_mask(wave, lengths)
        if mask.numel() == 0:
            return Tokens.empty(wave.shape[0], self.config.num_levels, wave.device)
        ids = self.quantizer.encode(self._latents(without_padding(wave, lengths), mask))
        return Tokens(ids * mask[:, None].long(), frames)

    @torch.no_grad()
    def decode(self, codes: Ids, lengths: Lengths) -> Wave:
        if codes.shape[2] == 0:
            return torch.zeros(codes.shape[0], 0, device=codes.device)
        mask = length_mask(lengths, codes.shape[2]).float()
        return self._wave(self.quantizer.decode(codes), mask)

    @torch.no_grad()
    def vectors(self, ids: Ids) -> Float[Tensor, "B N D"]:
        return self.quantizer.decode(ids)

    def attempt(self, batch: WaveBatch) -> Attempt:
        wave = without_padding(batch.wave, batch.lengths)
        mask = self._frame_mask(wave, batch.lengths)
        quantized = self.quantizer(self._latents(wave, mask), mask)
        made = self._wave(quantized.latents, mask)[:, : wave.shape[1]]
        made = without_padding(made, batch.lengths)
        parts = self.losses(made, wave)
        return Attempt(wave, made, quantized, mask, parts["reconstruction"], parts)

    def _frame_mask(self, wave: Wave, lengths: Lengths) -> Float[Tensor, "B N"]:
        hop = self.config.hop
        return length_mask(-(-lengths // hop), -(-wave.shape[1] // hop)).float()

    def _latents(self, wave: Wave, mask: Float[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
        with torch.no_grad():
            inputs = features(self.analysis.analyse(wave)) * mask[..., None]
        latents: Tensor = self.encoder(inputs, mask)
        return latents

    def _wave(self, latents: Float[Tensor, "B N D"], mask: Float[Tensor, "B N"]) -> Wave:
        fine = mask.repeat_interleave(self.config.subframes, dim=1)
        spectra = self._spectrum(self.decoder(latents * mask[..., None], fine))
        return self.synthesis.synthesise(spectra, fine)
