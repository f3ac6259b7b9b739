"""SoundStream: a causal convolutional encoder and decoder around a residual quantizer.

Zeghidour et al., arXiv 2107.03312, at the rates that AudioLM uses (arXiv 2209.03143).

Shape legend: B batch, T samples, N frames, Q levels, D latent channels.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from segue.core.interfaces import (
    Ids,
    Lengths,
    StreamingDecoder,
    StreamingEncoder,
    Tokens,
    Wave,
    WaveBatch,
)
from segue.plugins.layers.lengths import length_mask, without_padding
from segue.plugins.tokenizers.common.codec import Attempt, TrainedCodec
from segue.plugins.tokenizers.common.quantizer import ResidualQuantizer
from segue.plugins.tokenizers.soundstream.config import SoundStreamOptions
from segue.plugins.tokenizers.soundstream.losses import SpectralLoss
from segue.plugins.tokenizers.soundstream.network import Past, make_decoder, make_encoder


class SoundStream(TrainedCodec):
    """Encode audio to Q residual levels of codes per frame, and decode it, without look-ahead."""

    config: SoundStreamOptions

    def __init__(self, config: SoundStreamOptions) -> None:
        super().__init__(config)
        self.encoder = make_encoder(config)
        self.quantizer = ResidualQuantizer(
            config.num_levels, config.codebook_size, config.latent_dim, config.codebook_decay,
            config.revive_below, config.quantizer_dropout, kmeans_vectors=config.kmeans_frames,
        )  # fmt: skip
        self.decoder = make_decoder(config)
        self.spectral_loss = SpectralLoss(config.sample_rate)

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of the weights, to which audio is converted."""
        return next(self.parameters()).dtype

    @property
    def can_stream(self) -> bool:
        return True

    @torch.no_grad()
    def encode(self, wave: Wave, lengths: Lengths) -> Tokens:
        # Without look-ahead, zeros beyond a row's length are enough to encode it as if alone.
        ids = self.analyse(self._framed(wave, lengths))
        tokens = Tokens(ids, -(-lengths // self.config.hop))
        return Tokens(ids * tokens.mask[:, None], tokens.lengths)

    @torch.no_grad()
    def decode(self, codes: Ids, lengths: Lengths) -> Wave:
        return without_padding(self.synthesise(codes), lengths * self.config.hop)

    def streaming_decoder(self) -> SoundStreamDecoder:
        return SoundStreamDecoder(self)

    def streaming_encoder(self) -> SoundStreamEncoder:
        return SoundStreamEncoder(self)

    @torch.no_grad()
    def vectors(self, ids: Ids) -> Float[Tensor, "B N D"]:
        return self.quantizer.decode(ids)

    def analyse(self, wave: Wave, past: Past | None = None) -> Ids:
        """Return the ``[B, Q, N]`` codes of ``[B, N * hop]`` samples that come after ``past``."""
        if wave.shape[1] == 0:
            return Tokens.empty(wave.shape[0], self.config.num_levels, wave.device).ids
        return self.quantizer.encode(self._latents(wave.to(self.dtype), past))

    def synthesise(self, codes: Ids, past: Past | None = None) -> Wave:
        """Return the ``[B, N * hop]`` samples of ``[B, q, N]`` codes that come after ``past``."""
        if codes.shape[2] == 0:
            return torch.zeros(codes.shape[0], 0, dtype=self.dtype, device=codes.device)
        return self._wave(self.quantizer.decode(codes), past)

    def attempt(self, batch: WaveBatch) -> Attempt:
        wave = self._framed(batch.wave, batch.lengths)
        hop = self.config.hop
        mask = length_mask(-(-batch.lengths // hop), wave.shape[1] // hop).to(self.dtype)
        quantized = self.quantizer(self._latents(wave, None), mask)
        made = without_padding(self._wave(quantized.latents, None), batch.lengths)
        distance = self.spectral_loss(made, wave)
        loss = self.config.loss.reconstruction * distance
        return Attempt(wave, made, quantized, mask, loss, {"reconstruction": distance})

    def _framed(self, wave: Wave, lengths: Lengths) -> Wave:
        """Return a whole number of frames, zero beyond each row's length."""
        missing = -wave.shape[1] % self.config.hop
        return pad(without_padding(wave.to(self.dtype), lengths), (0, missing))

    def _latents(self, wave: Wave, past: Past | None) -> Float[Tensor, "B N D"]:
        latents: Tensor = self.encoder(wave[:, None], past)
        return latents.transpose(1, 2)

    def _wave(self, latents: Float[Tensor, "B N D"], past: Past | None) -> Wave:
        wave: Tensor = self.decoder(latents.transpose(1, 2), past)
        return wave[:, 0]


class SoundStreamDecoder(StreamingDecoder):
    """Return each frame's samples as soon as the frame is known."""

    def __init__(self, codec: SoundStream) -> None:
        self._codec = codec
        self._past, self._rows = Past(), 0

    @torch.no_grad()
    def push(self, codes: Ids) -> Wave:
        self._rows = codes.shape[0]
        return self._codec.synthesise(codes, self._past)

    def finish(self) -> Wave:
        rest = torch.zeros(self._rows, 0, dtype=self._codec.dtype, device=self._codec.device)
        self._past, self._rows = Past(), 0
        return rest


class SoundStreamEncoder(StreamingEncoder):
    """Return each frame's codes as soon as its last sample is known."""

    def __init__(self, codec: SoundStream) -> None:
        self._codec = codec
        self._past = Past()
        self._waiting: Tensor | None = None  # samples of a frame that is not full yet

    @torch.no_grad()
    def push(self, wave: Wave) -> Ids:
        # A frame is encoded once it is full; its rest waits for the next chunk.
        known = wave if self._waiting is None else torch.cat([self._waiting, wave], dim=1)
        full = known.shape[1] - known.shape[1] % self._codec.config.hop
        self._waiting = known[:, full:]
        return self._codec.analyse(known[:, :full], self._past)

    @torch.no_grad()
    def finish(self) -> Ids:
        rest = torch.zeros(0, 0) if self._waiting is None else self._waiting
        missing = -rest.shape[1] % self._codec.config.hop
        codes = self._codec.analyse(pad(rest, (0, missing)), self._past)
        self._past, self._waiting = Past(), None
        return codes
