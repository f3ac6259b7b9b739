"""Log-mel spectra, convolutions that reduce their rate, conformer layers.

Shape legend: B batch, M spectra, F mel bands, N frames, D width.
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
from segue.plugins.tokenizers.common.framing import Framing
from segue.plugins.tokenizers.common.notes import note_filters
from segue.plugins.tokenizers.w2v_bert.config import W2vBertOptions

LOWEST_HERTZ = 20.0
FLOOR = 1e-5  # magnitude; a full-scale sine has about 0.5
LEAST_VARIANCE = 1.0  # in squared nats: a band without sound is not blown up to noise

Mel = Float[Tensor, "B M F"]
Frames = Float[Tensor, "B N D"]
Mask = Bool[Tensor, "B N"]


def mel_bands(config: W2vBertOptions) -> Float[Tensor, "K F"]:
    """Triangles on the mel scale, from all K bins of a spectrum."""
    filters: Tensor = torchaudio.functional.melscale_fbanks(
        config.window // 2 + 1, LOWEST_HERTZ, config.sample_rate / 2, config.num_mels,
        config.sample_rate, norm=None, mel_scale="htk",
    )  # fmt: skip
    return filters


def note_bands(config: W2vBertOptions) -> Float[Tensor, "K F"]:
    """A band per semitone, so that chords that are moved up or down look alike."""
    notes = config.lowest_note + torch.arange(config.num_mels)
    return note_filters(notes, config.sample_rate, config.window).float()


class LogMel(nn.Module):
    """Log-mel spectra with zero mean and unit variance: of each band over a row, or of a row."""

    filters: Tensor

    def __init__(self, config: W2vBertOptions) -> None:
        super().__init__()
        self.hop, self.subframes = config.hop, config.subframes
        self.over = (1,) if config.normalise == "band" else (1, 2)
        self.framing = Framing(config.hop, config.window)
        filters = note_bands(config) if config.bands == "note" else mel_bands(config)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, wave: Wave, lengths: Lengths) -> Mel:
        """``[B, N * subframes, F]``, 0 beyond each row's end.

        Args:
            wave: zero beyond each row's length.
            lengths: samples.
        """
        return self.normalised(self.raw(wave), lengths)

    def raw(self, wave: Wave) -> Mel:
        """``[B, N * subframes, F]`` logarithms of magnitudes, of ``FLOOR`` where there is none."""
        spectra = self.framing.analyse(wave).abs() @ self.filters.to(wave.dtype)
        missing = -spectra.shape[1] % self.subframes
        return torch.log(functional.pad(spectra, (0, 0, 0, missing)) + FLOOR)

    def normalised(self, mel: Mel, lengths: Lengths) -> Mel:
        """What ``forward`` makes of raw ones."""
        inside = valid_mask(-(-lengths // self.hop), mel.shape[1])[..., None]
        count = inside.expand_as(mel).sum(self.over, keepdim=True).clamp(min=1)
        mel = (mel - (mel * inside).sum(self.over, keepdim=True) / count) * inside
        variance = mel.square().sum(self.over, keepdim=True) / count
        return mel / (variance + LEAST_VARIANCE).sqrt()


class Subsampling(nn.Module):
    """Two convolutions over time, from spectra to frames."""

    def __init__(self, config: W2vBertOptions) -> None:
        super().__init__()
        width, last = config.width, config.subframes // 2
        self.first = nn.Conv1d(config.num_mels, width, 4, stride=2, padding=1)
        self.second = nn.Conv1d(width, width, 2 + last, stride=last, padding=1)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)
        self.last = last

    def forward(self, mel: Mel, valid: Mask) -> Frames:
        """``valid`` says which frames are no padding; others come out as zeros."""
        x = functional.gelu(self.first(mel.transpose(1, 2)))
        x = x * valid.repeat_interleave(self.last, dim=1)[:, None]
        x = functional.gelu(self.second(x)[..., : valid.shape[1]])
        y: Tensor = self.out(self.norm(x.transpose(1, 2)))
        return y * valid[..., None]


class Encoder(nn.Module):
    """Conformer layers (Gulati et al., arXiv 2005.08100) over subsampled spectra."""

    def __init__(self, config: W2vBertOptions) -> None:
        super().__init__()
        self.subsampling = Subsampling(config)
        size = TransformerOptions(
            width=config.width, depth=config.depth, heads=config.heads,
            feed_forward=config.feed_forward, dropout=config.dropout,
        )  # fmt: skip
        self.conformer = Conformer(size, config.kernel)

    def forward(self, mel: Mel, valid: Mask, layers: int) -> list[Frames]:
        """Activations of the lowest layers.

        Args:
            mel: spectra.
            valid: which frames are no padding.
            layers: how many layers.

        Returns:
            ``layers`` tensors ``[B, N, D]``, the lowest layer's first.
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


def valid_mask(lengths: Lengths, count: int) -> Bool[Tensor, "B M"]:
    """True at the first ``lengths`` of ``count`` places."""
    return torch.arange(count, device=lengths.device) < lengths[:, None]
