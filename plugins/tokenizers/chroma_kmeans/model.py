"""Chroma, pitch height, onset strength and loudness, clustered.

Chroma folds a spectrum into the twelve pitch classes (Fujishima, ICMC 1999; logarithmic
compression after Müller & Ewert, ISMIR 2011), which keeps harmony and most of a melody and drops
timbre.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from segue.core.interfaces import Lengths, Wave
from segue.plugins.tokenizers.chroma_kmeans.config import ChromaKMeansOptions
from segue.plugins.tokenizers.common.framing import Framing, with_edges
from segue.plugins.tokenizers.common.kmeans import KMeansTokenizer
from segue.plugins.tokenizers.common.notes import PITCH_CLASSES, note_filters

COMPRESSION = 1000.0  # of magnitudes: 60 dB below a full-scale sine begins to count
FLOOR = 1e-4
FLAT = 0.5  # the same for centred ones: of a note it is .96, of noise less than .4
QUIET = 0.1  # a chroma vector shorter than this is not stretched to unit length
BAND_BINS = 16  # bins pooled before their growth counts as an onset


class ChromaKMeansTokenizer(KMeansTokenizer):
    """Tokens that follow harmony, melody and rhythm.

    Args:
        config: options.
    """

    config: ChromaKMeansOptions
    filters: Tensor
    folding: Tensor
    notes: Tensor
    weighting: Tensor

    def __init__(self, config: ChromaKMeansOptions) -> None:
        super().__init__(config, config.num_classes + 3)
        self.pitch_framing = Framing(config.hop, config.pitch_window)
        self.onset_framing = Framing(config.hop, config.onset_window)
        notes = torch.arange(config.lowest_note, config.highest_note + 1)
        self.register_buffer(
            "filters",
            note_filters(notes, config.sample_rate, config.pitch_window),
            persistent=False,
        )
        split = config.split_note if config.chroma == "split" else None
        self.register_buffer("folding", _folding(notes, split), persistent=False)
        self.register_buffer("notes", notes, persistent=False)
        extra = [config.height_weight, config.onset_weight, config.loudness_weight]
        weighting = torch.tensor([1.0] * config.num_classes + extra)
        self.register_buffer("weighting", weighting, persistent=False)

    def weights(self) -> Float[Tensor, "D"]:
        return self.weighting

    def features(self, wave: Wave, lengths: Lengths) -> Float[Tensor, "B N D"]:
        """Means over a token's spectra; of the onset strength the maximum, as onsets are short."""
        steps = self.config.subframes
        tokens = -(-wave.shape[1] // (self.config.hop * steps))
        valid = -(-lengths // self.config.hop)
        fine = torch.cat([self._pitch(wave), self._dynamics(wave)], dim=2)
        fine = with_edges(fine, valid, tokens * steps, 0)
        groups = fine.reshape(fine.shape[0], tokens, steps, fine.shape[2])
        harmony, onset, loudness = groups[..., :-2], groups[..., -2:-1], groups[..., -1:]
        return torch.cat([harmony.mean(2), onset.amax(2), loudness.mean(2)], dim=2)

    def _pitch(self, wave: Wave) -> Float[Tensor, "B M E"]:
        """Chroma (each of at most unit length) and mean pitch in octaves."""
        notes = self.notes.to(wave.dtype)
        spectrum = self.pitch_framing.analyse(wave).abs() @ self.filters.to(wave.dtype)
        strength = torch.log1p(COMPRESSION * spectrum)
        folded = strength @ self.folding.to(wave.dtype)
        chroma = _unit(folded.unflatten(2, (-1, PITCH_CLASSES)), QUIET)
        if self.config.chroma == "centred":
            chroma = _unit(chroma - chroma.mean(3, keepdim=True), FLAT)
        # Squared, so that partials weigh less than the notes they belong to.
        share = strength.square()
        share = share / share.sum(2, keepdim=True).clamp(min=QUIET)
        height = (share * (notes - notes.mean())).sum(2, keepdim=True) / PITCH_CLASSES
        return torch.cat([chroma.flatten(2), height], dim=2)

    def _dynamics(self, wave: Wave) -> Float[Tensor, "B M 2"]:
        """Onset strength (mean growth of log magnitudes since the last spectrum) and log energy."""
        magnitude = self.onset_framing.analyse(wave).abs()
        bands = nn.functional.avg_pool1d(magnitude, BAND_BINS, BAND_BINS, ceil_mode=True)
        levels = torch.log(bands + FLOOR)
        # The first spectrum has no predecessor and counts as no onset.
        growth = torch.diff(levels, dim=1, prepend=levels[:, :1]).clamp(min=0)
        energy = torch.log(magnitude.square().sum(2, keepdim=True) + FLOOR**2)
        return torch.cat([growth.mean(2, keepdim=True), energy], dim=2)


def _unit(x: Float[Tensor, "... D"], least: float) -> Float[Tensor, "... D"]:
    """Of at most unit length; what is shorter than ``least`` is not stretched to that."""
    length: Tensor = x.norm(dim=-1, keepdim=True)
    return x / length.clamp(min=least)


def _folding(notes: Tensor, split: int | None) -> Float[Tensor, "M C"]:
    """Which notes add to which class, of the treble chroma (first) and of the bass chroma if they
    are split."""
    classes = notes % PITCH_CLASSES
    if split is None:
        return nn.functional.one_hot(classes, PITCH_CLASSES).double()
    halves = classes + PITCH_CLASSES * (notes < split)
    return nn.functional.one_hot(halves, 2 * PITCH_CLASSES).double()
