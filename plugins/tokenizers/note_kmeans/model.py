"""Semantic tokens of piano music: which keys are struck and which sound, by register.

A small convolutional network over a harmonic constant-Q spectrum transcribes. Its layers see each
key with its partials side by side, as in Bittner et al., "A lightweight instrument-agnostic model
for polyphonic note transcription" (ICASSP 2022, arXiv 2203.09893); two windows show pitch and time.
The shape, the training and the weights are Segue's own.

Its tokens are clusters of what the network hears in each register. The network was taught by
scores, so these tokens are not found in audio alone as AudioLM's are.

Shape legend: B batch, T samples, N frames (tokens), M frames of the network (50 a second),
D features, R = frames per token + 1, K keys, C channels.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from segue.core.interfaces import Wave
from segue.plugins.tokenizers.common.options import HOP, KEYS, LOWEST, RATE
from segue.plugins.tokenizers.common.registers import RegisterTokenizer
from segue.plugins.tokenizers.common.spectra import Framing, note_filters
from segue.plugins.tokenizers.note_kmeans.config import NoteKMeansOptions

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


class NoteKMeansTokenizer(RegisterTokenizer):
    """The network is used as it was trained; only the clusters are fitted."""

    config: NoteKMeansOptions

    def __init__(self, config: NoteKMeansOptions) -> None:
        super().__init__(config)
        self.network = NoteNetwork(config).requires_grad_(False)

    def row_features(self, wave: Float[Tensor, "T"]) -> Float[Tensor, "N D"]:
        """Return the chances that each key is struck and sounds."""
        self.network.eval()
        whole = functional.pad(wave, (0, -wave.shape[0] % self.spec.frame_size))
        struck, sounding = self.network(whole[None].to(self.centroids.dtype))
        pool = self.config.pool
        onsets = struck[0].sigmoid().unflatten(0, (-1, pool))
        held = sounding[0].sigmoid().unflatten(0, (-1, pool)).mean(1, keepdim=True)
        return self.by_register(onsets, held)
