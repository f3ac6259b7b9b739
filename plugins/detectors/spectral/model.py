"""Classify log-mel spectrograms by a small convolutional network (AudioLM, arXiv 2209.03143,
detection of synthesised speech)."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from segue.core.interfaces import ORIGINS, Detector, Lengths, Wave, WaveBatch
from segue.plugins.detectors.spectral.config import SpectralDetectorOptions
from segue.plugins.layers.lengths import length_mask, without_padding

LEVEL = 0.05  # root mean square that every row is brought to: loudness must not matter
FLOOR = 1e-4  # of magnitudes, at that level


class SpectralDetector(Detector):
    """Log-mel bands, convolutions that halve time and frequency, means over time, three classes."""

    config: SpectralDetectorOptions

    def __init__(self, config: SpectralDetectorOptions) -> None:
        super().__init__(config)
        bank = melscale_fbanks(
            config.fft_size // 2 + 1, 0.0, config.sample_rate / 2, config.bands, config.sample_rate
        )
        # Tensors that follow from the options are not stored with the weights.
        self.bank: Tensor
        self.window: Tensor
        self.register_buffer("bank", bank, persistent=False)
        self.register_buffer("window", torch.hann_window(config.fft_size), persistent=False)
        widths = (1, *config.channels)
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in config.channels)
        self.dropout = nn.Dropout(config.dropout)
        rows = config.bands
        for _ in config.channels:
            rows = (rows + 1) // 2
        self.head = nn.Linear(config.channels[-1] * rows * 2, len(ORIGINS))

    def score(self, wave: Wave, lengths: Lengths) -> Float[Tensor, "B 3"]:
        return self._logits(wave, lengths).softmax(dim=1)

    def origin_loss(self, batch: WaveBatch, origins: Int64[Tensor, "B"]) -> Float[Tensor, ""]:
        return nn.functional.cross_entropy(self._logits(batch.wave, batch.lengths), origins)

    def _logits(self, wave: Wave, lengths: Lengths) -> Float[Tensor, "B 3"]:
        features, frames = self.features(wave, lengths)
        found = features[:, None]
        for layer, norm in zip(self.layers, self.norms, strict=True):
            frames = (frames + 1) // 2
            mask = length_mask(frames, (found.shape[3] + 1) // 2)[:, None, None]
            # Per position, so that neither padding nor a row's length changes its statistics.
            found = norm(layer(found).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            found = nn.functional.gelu(found) * mask
        found = found.flatten(1, 2)
        count = frames[:, None].clamp_min(1)
        mean = found.sum(dim=2) / count
        known = length_mask(frames, found.shape[2])[:, None]
        spread = ((found - mean[:, :, None]).square() * known).sum(dim=2) / count
        pooled = torch.cat([mean, (spread + 1e-6).sqrt()], dim=1)
        return self.head(self.dropout(pooled))

    def features(
        self, wave: Wave, lengths: Lengths
    ) -> tuple[Float[Tensor, "B M N"], Int64[Tensor, "B"]]:
        """Return log-mel bands, zero beyond a row's frames, and each row's number of frames."""
        size, hop = self.config.fft_size, self.config.hop_size
        wave = without_padding(wave, lengths)
        power = wave.square().sum(dim=1) / lengths.clamp_min(1)
        wave = wave * (LEVEL / power.clamp_min(1e-12).sqrt())[:, None]
        padded = nn.functional.pad(wave, (size // 2, size // 2))
        spectrum = torch.stft(
            padded, size, hop, window=self.window, center=False, return_complex=True
        ).abs()
        mel = torch.einsum("bfn,fm->bmn", spectrum, self.bank)
        log = mel.clamp_min(FLOOR).log10() * 0.5 + 0.5
        frames = lengths // hop + 1
        return log * length_mask(frames, log.shape[2])[:, None], frames
