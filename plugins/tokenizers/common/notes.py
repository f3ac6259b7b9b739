"""Spectra by note instead of by frequency."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

PITCH_CLASSES = 12


def note_filters(notes: Int64[Tensor, "M"], sample_rate: int, window: int) -> Float[Tensor, "F M"]:
    """Bell curves around each note's frequency, half a semitone or one bin wide at least.

    Args:
        notes: MIDI numbers.
        sample_rate: samples per second.
        window: samples of the transform; ``F = window / 2 + 1``.
    """
    bin_width = sample_rate / window
    bins = torch.arange(window // 2 + 1, dtype=torch.float64) * bin_width
    frequencies = 440.0 * 2.0 ** ((notes.double() - 69.0) / 12.0)
    widths = (frequencies * (2.0 ** (1.0 / 48.0) - 1.0)).clamp(min=0.5 * bin_width)
    filters = torch.exp(-0.5 * ((bins[:, None] - frequencies) / widths).square())
    return filters * (frequencies < sample_rate / 2)
