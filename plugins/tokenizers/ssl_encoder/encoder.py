"""Spectra, convolutions that reduce their rate, and conformer layers.

Shape legend: B batch, T samples, M spectra, F bands, N frames, D width, K bins.
"""

from __future__ import annotations

import torch
import torchaudio
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from segue.core.interfaces import Lengths, Wave
from segue.plugins.layers.config import TransformerOptions
from segue.plugins.layers.conformer import Conformer
from segue.plugins.layers.lengths import length_mask
from segue.plugins.tokenizers.common.spectra import Framing, note_filters
from segue.plugins.tokenizers.ssl_encoder.config import SslEncoderOptions

LOWEST_HERTZ = 20.0
FLOOR = 1e-5  # magnitude; a full-scale sine has about 0.5
LEAST_VARIANCE = 1.0  # in squared nats: a band without sound is not amplified to noise

Mel = Float[Tensor, "B M F"]
Frames = Float[Tensor, "B N D"]
Mask = Bool[Tensor, "B N"]


class LogMel(nn.Module):
    """Compute log spectra in bands, with zero mean and unit variance of each band or row."""

    filters: Tensor

    def __init__(self, config: SslEncoderOptions) -> None:
        super().__init__()
        self.hop, self.subframes = config.hop, config.subframes
        self.over = (1,) if config.normalise == "band" else (1, 2)
        self.framing = Framing(config.hop, config.window)
        if config.bands == "note":
            # One band per semitone, so that transposed chords look alike.
            notes = config.lowest_note + torch.arange(config.num_mels)
            filters = note_filters(notes, config.sample_rate, config.window).float()
        else:
            filters = torchaudio.functional.melscale_fbanks(
                config.window // 2 + 1, LOWEST_HERTZ, config.sample_rate / 2, config.num_mels,
                config.sample_rate, norm=None, mel_scale="htk",
            )  # fmt: skip
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, wave: Wave, lengths: Lengths) -> Mel:
        """Return ``[B, N * subframes, F]``, 0 beyond each row's end.

        Args:
            wave: zero beyond each row's length.
            lengths: samples.
        """
        return self.normalised(self.raw(wave), lengths)

    def raw(self, wave: Wave) -> Mel:
        """Return ``[B, N * subframes, F]`` logarithms of magnitudes, at least ``FLOOR``."""
        spectra = self.framing.analyse(wave).abs() @ self.filters.to(wave.dtype)
        missing = -spectra.shape[1] % self.subframes
        return torch.log(functional.pad(spectra, (0, 0, 0, missing)) + FLOOR)

    def normalised(self, mel: Mel, lengths: Lengths) -> Mel:
        """Return raw spectra with zero mean and unit variance."""
        inside = length_mask(-(-lengths // self.hop), mel.shape[1])[..., None]
        count = inside.expand_as(mel).sum(self.over, keepdim=True).clamp(min=1)
        mel = (mel - (mel * inside).sum(self.over, keepdim=True) / count) * inside
        variance = mel.square().sum(self.over, keepdim=True) / count
        return mel / (variance + LEAST_VARIANCE).sqrt()


class Subsampling(nn.Module):
    """Reduce spectra to frames by two convolutions over time."""

    def __init__(self, config: SslEncoderOptions) -> None:
        super().__init__()
        width, last = config.width, config.subframes // 2
        self.first = nn.Conv1d(config.num_mels, width, 4, stride=2, padding=1)
        self.second = nn.Conv1d(width, width, 2 + last, stride=last, padding=1)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)
        self.last = last

    def forward(self, mel: Mel, valid: Mask) -> Frames:
        """Return frames, zero where ``valid`` is False."""
        x = functional.gelu(self.first(mel.transpose(1, 2)))
        # The first convolution leaves something in the padding that the second would read.
        x = x * valid.repeat_interleave(self.last, dim=1)[:, None]
        x = functional.gelu(self.second(x)[..., : valid.shape[1]])
        y: Tensor = self.out(self.norm(x.transpose(1, 2)))
        return y * valid[..., None]


class Encoder(nn.Module):
    """Run conformer layers (Gulati et al., arXiv 2005.08100) over subsampled spectra."""

    def __init__(self, config: SslEncoderOptions) -> None:
        super().__init__()
        self.subsampling = Subsampling(config)
        size = TransformerOptions(
            width=config.width, depth=config.depth, heads=config.heads,
            feed_forward=config.feed_forward, dropout=config.dropout,
        )  # fmt: skip
        self.conformer = Conformer(size, config.kernel)

    def forward(self, mel: Mel, valid: Mask, layers: int) -> list[Frames]:
        """Return the activations of the lowest layers, ``[B, N, D]`` each.

        Args:
            mel: spectra.
            valid: False at padding.
            layers: how many layers to run.
        """
        x = self.subsampling(mel, valid)
        places = torch.arange(x.shape[1], device=x.device, dtype=x.dtype).expand(x.shape[0], -1)
        sight = self.conformer.sight(places, valid)
        x = self.conformer.dropout(x)
        found = []
        for block in self.conformer.layers[:layers]:
            x = block(x, sight, None)
            # In the paper a norm ends each block; here it is outside the residual stream.
            found.append(functional.layer_norm(x, x.shape[-1:]))
        return found
