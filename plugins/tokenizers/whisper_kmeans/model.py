"""Semantic tokens from a layer of a speech recogniser.

Whisper (Radford et al., arXiv 2212.04356) was trained on transcripts, so these tokens are not
textless as AudioLM's are. Quantised features of a recogniser drive CosyVoice (arXiv 2407.05407)
and GLM-4-Voice (arXiv 2412.02612), too. ``tools/import_whisper.py`` takes over the encoder's
weights.

Shape legend: B batch, T samples, M spectra, N frames (50 a second), F bands, D width.
"""

from __future__ import annotations

import math

import torch
import torchaudio
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from segue.core.interfaces import Wave
from segue.plugins.tokenizers.common.kmeans import WindowedTokenizer
from segue.plugins.tokenizers.whisper_kmeans.config import HOP, RATE, WhisperKMeansOptions

WINDOW = 400
FLOOR = 1e-10  # of power
RANGE = 8.0  # powers of ten below the loudest bin that are kept

Frames = Float[Tensor, "B N D"]


class LogMel(nn.Module):
    """Log-mel spectra as Whisper scales them: the loudest of each row is near 1."""

    filters: Tensor
    hann: Tensor

    def __init__(self, num_mels: int) -> None:
        super().__init__()
        filters = torchaudio.functional.melscale_fbanks(
            WINDOW // 2 + 1, 0.0, RATE / 2, num_mels, RATE, norm="slaney", mel_scale="slaney"
        )
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("hann", torch.hann_window(WINDOW), persistent=False)

    def forward(self, wave: Wave) -> Float[Tensor, "B F M"]:
        spectra = torch.stft(
            wave, WINDOW, HOP, window=self.hann.to(wave.dtype), center=True, return_complex=True
        )[..., :-1]
        power = self.filters.to(wave.dtype).T @ spectra.abs().square()
        logs = power.clamp_min(FLOOR).log10()
        logs = torch.maximum(logs, logs.amax((1, 2), keepdim=True) - RANGE)
        return (logs + 4.0) / 4.0


class Block(nn.Module):
    """Attention and feed-forward, each with its norm before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, 3 * width)
        self.outer = nn.Linear(width, width)
        self.feed_norm = nn.LayerNorm(width)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Frames) -> Frames:
        inner = self.inner(self.attention_norm(x)).unflatten(2, (3, self.heads, -1))
        query, key, value = inner.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.outer(seen.transpose(1, 2).flatten(2))
        return x + self.feed(self.feed_norm(x))


class Encoder(nn.Module):
    """Two convolutions, which halve the rate, and transformer blocks that see all frames."""

    def __init__(self, config: WhisperKMeansOptions) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(config.num_mels, config.width, 3, padding=1)
        self.conv2 = nn.Conv1d(config.width, config.width, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.depth))

    def forward(self, mel: Float[Tensor, "B F M"]) -> Frames:
        """Return the last block's activations."""
        x = functional.gelu(self.conv1(mel))
        x = functional.gelu(self.conv2(x)).transpose(1, 2)
        x = x + sinusoids(x.shape[1], x.shape[2]).to(x)
        for block in self.blocks:
            x = block(x)
        return x


def sinusoids(count: int, width: int) -> Float[Tensor, "N D"]:
    """Return the positions: sines of geometrically spaced periods, then cosines."""
    rates = torch.exp(-math.log(10000.0) / (width // 2 - 1) * torch.arange(width // 2))
    angles = torch.arange(count)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class WhisperKMeansTokenizer(WindowedTokenizer):
    """The encoder is used as it was trained; only the clusters are fitted."""

    needs_weights = True
    config: WhisperKMeansOptions

    def __init__(self, config: WhisperKMeansOptions) -> None:
        super().__init__(config, config.width)
        self.mel = LogMel(config.num_mels)
        self.encoder = Encoder(config).requires_grad_(False)

    def row_features(self, wave: Float[Tensor, "T"]) -> Float[Tensor, "N D"]:
        """Return the mean of each token's frames."""
        whole = functional.pad(wave, (0, -wave.shape[0] % self.spec.frame_size))
        frames = self.encoder(self.mel(whole[None]).to(self.centroids.dtype))[0]
        return frames.unflatten(0, (-1, self.config.pool)).mean(1)
