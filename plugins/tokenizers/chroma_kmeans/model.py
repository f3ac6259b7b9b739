"""Semantic tokens from chroma, pitch height, onset strength and loudness.

Chroma folds a spectrum into the twelve pitch classes (Fujishima, ICMC 1999; logarithmic
compression after Müller & Ewert, ISMIR 2011), which keeps harmony and most of a melody and drops
timbre.

Shape legend: B batch, M spectra, P notes, N frames (tokens), D features.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from segue.core.interfaces import Lengths, Wave
from segue.plugins.tokenizers.chroma_kmeans.config import ChromaKMeansOptions
from segue.plugins.tokenizers.common.kmeans import KMeansTokenizer
from segue.plugins.tokenizers.common.spectra import (
    PITCH_CLASSES,
    Framing,
    note_filters,
    with_edges,
)

COMPRESSION = 1000.0  # of magnitudes: what is 60 dB below a full-scale sine begins to count
FLOOR = 1e-4
# Shorter vectors are not stretched to unit length.
QUIET = 0.1  # of chroma
FLAT = 0.5  # of centred chroma: a note has .96, noise less than .4
BAND_BINS = 16  # bins to pool before their growth counts as an onset


class ChromaKMeansTokenizer(KMeansTokenizer):
    """Emit tokens that follow harmony, melody and rhythm."""

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
        classes = notes % PITCH_CLASSES
        if config.chroma == "split":  # treble first, then bass
            classes = classes + PITCH_CLASSES * (notes < config.split_note)
        extra = [config.height_weight, config.onset_weight, config.loudness_weight]
        tables = {
            "filters": note_filters(notes, config.sample_rate, config.pitch_window),
            "folding": nn.functional.one_hot(classes, config.num_classes).double(),
            "notes": notes,
            "weighting": torch.tensor([1.0] * config.num_classes + extra),
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def weights(self) -> Float[Tensor, "D"]:
        return self.weighting

    def features(self, wave: Wave, lengths: Lengths) -> Float[Tensor, "B N D"]:
        """Return means over a token's spectra, and the maximum of onsets, which are short."""
        steps = self.config.subframes
        tokens = -(-wave.shape[1] // (self.config.hop * steps))
        valid = -(-lengths // self.config.hop)
        spectra = torch.cat([self._pitch(wave), self._dynamics(wave)], dim=2)
        spectra = with_edges(spectra, valid, tokens * steps, 0)
        groups = spectra.reshape(spectra.shape[0], tokens, steps, spectra.shape[2])
        harmony, onset, loudness = groups[..., :-2], groups[..., -2:-1], groups[..., -1:]
        return torch.cat([harmony.mean(2), onset.amax(2), loudness.mean(2)], dim=2)

    def _pitch(self, wave: Wave) -> Float[Tensor, "B M E"]:
        """Return chroma, each of at most unit length, and the mean pitch in octaves."""
        notes = self.notes.to(wave.dtype)
        spectrum = self.pitch_framing.analyse(wave).abs() @ self.filters.to(wave.dtype)
        strength = torch.log1p(COMPRESSION * spectrum)
        folded = strength @ self.folding.to(wave.dtype)
        chroma = _unit(folded.unflatten(2, (-1, PITCH_CLASSES)), QUIET)
        if self.config.chroma == "centred":
            chroma = _unit(chroma - chroma.mean(3, keepdim=True), FLAT)
        # Squares make partials weigh less than the notes they belong to.
        share = strength.square()
        share = share / share.sum(2, keepdim=True).clamp(min=QUIET)
        height = (share * (notes - notes.mean())).sum(2, keepdim=True) / PITCH_CLASSES
        return torch.cat([chroma.flatten(2), height], dim=2)

    def _dynamics(self, wave: Wave) -> Float[Tensor, "B M 2"]:
        """Return onset strength (mean growth of log magnitudes) and log energy."""
        magnitude = self.onset_framing.analyse(wave).abs()
        bands = nn.functional.avg_pool1d(magnitude, BAND_BINS, BAND_BINS, ceil_mode=True)
        levels = torch.log(bands + FLOOR)
        # The first spectrum has no predecessor: it is not an onset.
        growth = torch.diff(levels, dim=1, prepend=levels[:, :1]).clamp(min=0)
        energy = torch.log(magnitude.square().sum(2, keepdim=True) + FLOOR**2)
        return torch.cat([growth.mean(2, keepdim=True), energy], dim=2)


def _unit(x: Float[Tensor, "... D"], least: float) -> Float[Tensor, "... D"]:
    """Scale vectors to unit length, those shorter than ``least`` to less."""
    return x / x.norm(dim=-1, keepdim=True).clamp(min=least)
