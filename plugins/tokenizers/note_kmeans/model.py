"""Semantic tokens of piano music: which keys are struck and which sound, by register.

A small convolutional network over a harmonic constant-Q spectrum transcribes. Its layers see each
key with its partials side by side, as in Bittner et al., "A lightweight instrument-agnostic model
for polyphonic note transcription" (ICASSP 2022, arXiv 2203.09893); two windows show pitch and time.
The shape, the training and the weights are Segue's own.

A token per register is the nearest of the clusters of what the network hears there (product
quantisation: Jégou et al., IEEE TPAMI 2011). One cluster of everything cannot hold several voices,
whose combinations are too many. The network was taught by scores, so these tokens are not found in
audio alone as AudioLM's are.

Shape legend: B batch, T samples, N frames (tokens), M frames of the network (50 a second),
D features, R = frames per token + 1, K keys, C channels.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from segue.core.interfaces import Ids, Tokens, Wave
from segue.plugins.tokenizers.common.kmeans import WindowedTokenizer
from segue.plugins.tokenizers.common.spectra import Framing, note_filters
from segue.plugins.tokenizers.note_kmeans.config import HOP, KEYS, LOWEST, RATE, NoteKMeansOptions
from segue.plugins.tokenizers.note_kmeans.likeness import Heard, likeness

HARMONICS = (0.5, 1, 2, 3, 4, 5)
BINS = 3  # per semitone
COMPRESSION, SCALE = 1e4, 0.25  # of magnitudes
OCTAVE = 12

Keys = Float[Tensor, "B M K"]


class HarmonicSpectrum(nn.Module):
    """Log magnitudes around each key, of each harmonic and both windows as channels."""

    filters: Tensor
    short_filters: Tensor

    def __init__(self, config: NoteKMeansOptions) -> None:
        super().__init__()
        self.shifts = [round(BINS * OCTAVE * math.log2(harmonic)) for harmonic in HARMONICS]
        self.width = BINS * KEYS
        # The bins of key k are 3 k .. 3 k + 2; the one in the middle is in tune.
        bins = torch.arange(self.width + max(self.shifts), dtype=torch.float64)
        notes = LOWEST + (bins - 1) / BINS
        self.framing = Framing(HOP, config.pitch_window)
        self.short_framing = Framing(HOP, config.onset_window)
        for name, window in (
            ("filters", config.pitch_window),
            ("short_filters", config.onset_window),
        ):
            table = note_filters(notes, RATE, window).float()
            self.register_buffer(name, table, persistent=False)

    @property
    def channels(self) -> int:
        return 2 * len(self.shifts)

    def forward(self, wave: Wave) -> Float[Tensor, "B C M F"]:
        found = []
        for framing, filters in (
            (self.framing, self.filters),
            (self.short_framing, self.short_filters),
        ):
            magnitude = framing.analyse(wave).abs() @ filters
            levels = SCALE * torch.log1p(COMPRESSION * magnitude)
            below = -min(self.shifts)
            padded = functional.pad(levels, (below, 0))
            found += [
                padded[..., below + shift : below + shift + self.width] for shift in self.shifts
            ]
        return torch.stack(found, dim=1)


class KeyLayer(nn.Module):
    """A residual convolution over frames and keys.

    Args:
        step: keys from one that it sees to the next.
    """

    def __init__(self, channels: int, frames: int, keys: int, step: int = 1) -> None:
        super().__init__()
        padding = (frames // 2, keys // 2 * step)
        self.convolution = nn.Conv2d(
            channels, channels, (frames, keys), padding=padding, dilation=(1, step), bias=False
        )
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Float[Tensor, "B C M K"]) -> Float[Tensor, "B C M K"]:
        return x + functional.relu(self.norm(self.convolution(x)))


class NoteNetwork(nn.Module):
    """Compute for each frame the logits that a key is struck and that it sounds."""

    def __init__(self, config: NoteKMeansOptions) -> None:
        super().__init__()
        self.spectrum = HarmonicSpectrum(config)
        width = config.channels
        self.keys = nn.Conv2d(
            self.spectrum.channels, width, (3, 5), stride=(1, BINS), padding=(1, 1), bias=False
        )
        self.norm = nn.BatchNorm2d(width)
        self.layers = nn.Sequential(
            KeyLayer(width, 5, 3),
            KeyLayer(width, 3, 3, OCTAVE),
            KeyLayer(width, 5, 1),
        )
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, wave: Wave) -> tuple[Keys, Keys]:
        """Return logits that a key is struck in a frame, and that it sounds."""
        x = functional.relu(self.norm(self.keys(self.spectrum(wave))))
        struck, sounding = self.head(self.layers(x)).unbind(1)
        return struck, sounding


class NoteKMeansTokenizer(WindowedTokenizer):
    """The network is used as it was trained; only the clusters are fitted."""

    config: NoteKMeansOptions
    order: Tensor
    weighting: Tensor

    def __init__(self, config: NoteKMeansOptions) -> None:
        rows = config.pool + 1  # features of a key
        sizes = [rows * (last - first) for first, last in config.registers]
        super().__init__(config, sum(sizes), sizes)
        self.network = NoteNetwork(config).requires_grad_(False)
        # Features of a register lie together: onsets of each frame, then what sounds.
        key = torch.arange(rows * KEYS).reshape(rows, KEYS)
        order = torch.cat([key[:, first:last].flatten() for first, last in config.registers])
        weighting = torch.full((rows, KEYS), config.onset_weight)
        weighting[-1] = 1.0
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("weighting", weighting.flatten()[order], persistent=False)

    def weights(self) -> Float[Tensor, "D"]:
        """Undo the normalisation: a rare key is as important as another."""
        return self.weighting * self.deviation

    def keys(self, ids: Ids) -> Float[Tensor, "B N R K"]:
        """Return what tokens say of each key: chances that it is struck, by frame, and sounds."""
        points = self.vectors(ids) / self.weighting + self.mean
        return points[..., self.order.argsort()].unflatten(2, (-1, KEYS))

    @torch.no_grad()
    def likeness(self, known: Tokens, new: Tokens) -> Float[Tensor, "B"]:
        """Return how much key, rhythm and density stay as they were."""
        heard: dict[bytes, Heard] = {}  # candidates share what is known

        def hear(row: Int64[Tensor, "Q N"]) -> Heard:
            key = row.cpu().numpy().tobytes()
            if key not in heard:
                keys = self.keys(row[None])[0].cpu()
                heard[key] = Heard(keys, float(1 / self.spec.frame_rate))
            return heard[key]

        pairs = zip(known.rows(), new.rows(), strict=True)
        return torch.tensor([likeness(hear(before), hear(after)) for before, after in pairs])

    def row_features(self, wave: Float[Tensor, "T"]) -> Float[Tensor, "N D"]:
        """Return the chances that each key is struck and sounds."""
        self.network.eval()
        whole = functional.pad(wave, (0, -wave.shape[0] % self.spec.frame_size))
        struck, sounding = self.network(whole[None].to(self.centroids.dtype))
        pool = self.config.pool
        onsets = struck[0].sigmoid().unflatten(0, (-1, pool))
        held = sounding[0].sigmoid().unflatten(0, (-1, pool)).mean(1, keepdim=True)
        return torch.cat([onsets, held], dim=1).flatten(1)[:, self.order]
