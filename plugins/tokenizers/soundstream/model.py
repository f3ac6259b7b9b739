"""SoundStream: a causal convolutional encoder and decoder around a residual quantizer.

Zeghidour et al., arXiv 2107.03312, at the rates that AudioLM uses (arXiv 2209.03143).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from segue.core.interfaces import (
    AcousticCodec,
    Adversary,
    Ids,
    Lengths,
    StageBatch,
    Tokens,
    Wave,
    WaveBatch,
)
from segue.plugins.tokenizers.common.adversary import CodecAdversary, collapsed
from segue.plugins.tokenizers.common.quantizer import ResidualQuantizer
from segue.plugins.tokenizers.soundstream import network
from segue.plugins.tokenizers.soundstream.config import SoundStreamOptions
from segue.plugins.tokenizers.soundstream.layers import Past
from segue.plugins.tokenizers.soundstream.losses import SpectralLoss
from segue.plugins.tokenizers.soundstream.streaming import SoundStreamDecoder, SoundStreamEncoder


class SoundStream(AcousticCodec):
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

    def training_step(self, batch: WaveBatch | StageBatch) -> Mapping[str, Tensor]:
        """Losses of one batch of crops, reconstruction only; moves the codebooks as a side
        effect."""
        return self._losses(batch, None)

    def adversary(self) -> Adversary | None:
        options = self.config.adversary
        return None if options.none else CodecAdversary(options)

    def adversarial_step(
        self, batch: WaveBatch | StageBatch, adversary: Adversary
    ) -> Mapping[str, Tensor]:
        return self._losses(batch, adversary)

    def trouble(self, figures: Mapping[str, float]) -> str | None:
        return collapsed(figures)

    def _losses(
        self, batch: WaveBatch | StageBatch, adversary: Adversary | None
    ) -> Mapping[str, Tensor]:
        if not isinstance(batch, WaveBatch):
            raise TypeError("a codec is trained on a WaveBatch")
        wave = self._framed(batch.wave, batch.lengths)
        frames = -(-batch.lengths // self.config.hop)
        mask = _cut(torch.ones_like(wave[:, :: self.config.hop]), frames)
        quantized = self.quantizer(self._latents(wave, None), mask)
        made = _cut(self._wave(quantized.latents, None), batch.lengths)
        parts = {
            "reconstruction": self.spectral_loss(made, wave),
            "commitment": quantized.commitment,
        }
        others: dict[str, Tensor] = {}
        if adversary is not None:
            others = dict(adversary(wave, made))
            parts |= {name: others.pop(name) for name in ("adversarial", "feature_matching")}
        weights = self.config.loss.model_dump()
        weighted = {name: weights[name] * value for name, value in parts.items()}
        loss = torch.stack(list(weighted.values())).sum()
        if adversary is not None:
            opposed = weighted["adversarial"] + weighted["feature_matching"]
            others["adversarial_share"] = (opposed / loss).detach()
        figures = {name: value.detach() for name, value in parts.items()}
        return {"loss": loss, **others, **figures, **self.quantizer.use(quantized.ids, mask)}

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
