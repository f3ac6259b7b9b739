"""SoundStream: a causal convolutional encoder and decoder around a residual quantizer.

Zeghidour et al., arXiv 2107.03312, at the rates that AudioLM uses (arXiv 2209.03143).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from segue.core.interfaces import (
    Ids,
    Lengths,
    Tokens,
    Wave,
    WaveBatch,
)
from segue.plugins.tokenizers.common.quantizer import ResidualQuantizer
from segue.plugins.tokenizers.common.trained_codec import Attempt, TrainedCodec
from segue.plugins.tokenizers.soundstream import network
from segue.plugins.tokenizers.soundstream.config import SoundStreamOptions
from segue.plugins.tokenizers.soundstream.layers import Past
from segue.plugins.tokenizers.soundstream.losses import SpectralLoss
from segue.plugins.tokenizers.soundstream.streaming import SoundStreamDecoder, SoundStreamEncoder


class SoundStream(TrainedCodec):
    """Audio to Q residual levels of codes per frame, and back, looking nowhere ahead.

    Args:
        config: options.
    """

    config: SoundStreamOptions

    def __init__(self, config: SoundStreamOptions) -> None:
        super().__init__(config)
        self.encoder = network.encoder(config)
        self.quantizer = ResidualQuantizer(
            config.num_levels, config.codebook_size, config.latent_dim, config.codebook_decay,
            config.revive_below, config.quantizer_dropout, kmeans_vectors=config.kmeans_frames,
        )  # fmt: skip
        self.decoder = network.decoder(config)
        self.spectral_loss = SpectralLoss(config.sample_rate)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, which the audio is brought to."""
        return next(self.parameters()).dtype

    @property
    def can_stream(self) -> bool:
        return True

    @torch.no_grad()
    def encode(self, wave: Wave, lengths: Lengths) -> Tokens:
        # Nothing looks ahead: zeros beyond a row's length are all that it takes for each row to
        # be encoded as alone.
        ids = self.analyse(self._framed(wave, lengths))
        tokens = Tokens(ids, -(-lengths // self.config.hop))
        return Tokens(ids * tokens.mask[:, None], tokens.lengths)

    @torch.no_grad()
    def decode(self, codes: Ids, lengths: Lengths) -> Wave:
        return _cut(self.synthesise(codes), lengths * self.config.hop)

    def streaming_decoder(self) -> SoundStreamDecoder:
        return SoundStreamDecoder(self)

    def streaming_encoder(self) -> SoundStreamEncoder:
        return SoundStreamEncoder(self)

    @torch.no_grad()
    def vectors(self, ids: Ids) -> Float[Tensor, "B N D"]:
        return self.quantizer.decode(ids)

    def analyse(self, wave: Wave, past: Past | None = None) -> Ids:
        """``[B, Q, N]`` codes of ``[B, N * hop]`` samples, which come after ``past``."""
        if wave.shape[1] == 0:
            return Tokens.empty(wave.shape[0], self.config.num_levels, wave.device).ids
        return self.quantizer.encode(self._latents(wave.to(self.dtype), past))

    def synthesise(self, codes: Ids, past: Past | None = None) -> Wave:
        """``[B, N * hop]`` samples of ``[B, q, N]`` codes, which come after ``past``."""
        if codes.shape[2] == 0:
            return torch.zeros(codes.shape[0], 0, dtype=self.dtype, device=codes.device)
        return self._wave(self.quantizer.decode(codes), past)

    def attempt(self, batch: WaveBatch) -> Attempt:
        wave = self._framed(batch.wave, batch.lengths)
        frames = -(-batch.lengths // self.config.hop)
        mask = _cut(torch.ones_like(wave[:, :: self.config.hop]), frames)
        quantized = self.quantizer(self._latents(wave, None), mask)
        made = _cut(self._wave(quantized.latents, None), batch.lengths)
        distance = self.spectral_loss(made, wave)
        loss = self.config.loss.reconstruction * distance
        return Attempt(wave, made, quantized, mask, loss, {"reconstruction": distance})

    def _framed(self, wave: Wave, lengths: Lengths) -> Wave:
        """A whole number of frames, zero beyond each row's length."""
        return pad(_cut(wave.to(self.dtype), lengths), (0, -wave.shape[1] % self.config.hop))

    def _latents(self, wave: Float[Tensor, "B T"], past: Past | None) -> Float[Tensor, "B N D"]:
        latents: Tensor = self.encoder(wave[:, None], past)
        return latents.transpose(1, 2)

    def _wave(self, latents: Float[Tensor, "B N D"], past: Past | None) -> Float[Tensor, "B T"]:
        wave: Tensor = self.decoder(latents.transpose(1, 2), past)
        return wave[:, 0]


def _cut(x: Float[Tensor, "B S"], lengths: Lengths) -> Float[Tensor, "B S"]:
    """Zero beyond each row's length."""
    inside = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
    return torch.where(inside, x, torch.zeros((), dtype=x.dtype, device=x.device))
