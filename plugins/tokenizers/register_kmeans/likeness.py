"""Compare the key, the rhythm and the density of two stretches of music, as tokens show them."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from segue.plugins.layers.distributions import interval_table, jensen_shannon, joined
from segue.plugins.tokenizers.common.spectra import PITCH_CLASSES
from segue.plugins.tokenizers.register_kmeans.config import KEYS, LOWEST

# From which on count: a key, all keys together, and a key that sounds.
STRUCK, ONSET, SOUNDING = 0.35, 0.5, 0.5
APART = 2  # onsets are louder than what is so many parts of a frame away
FREE = 0.3  # octaves by which the density may change at no cost
RHYTHM = 2.0  # what a bit of times between onsets counts
RARE = 0.1  # notes a second that are added to densities, so that none is 0


class Heard:
    """Count how long each pitch class sounds, the times between onsets, and notes a second.

    Args:
        keys: ``[N, R, K]``: how much each key is struck in R - 1 parts of a frame, and sounds.
        seconds: length of a frame.
    """

    def __init__(self, keys: Float[Tensor, "N R K"], seconds: float) -> None:
        struck, held = keys[:, :-1].flatten(0, 1).clamp(min=0), keys[:, -1] > SOUNDING
        around = functional.pad(struck, (0, 0, 1, 1))
        peaks = (struck > STRUCK) & (struck >= around[:-2]) & (struck > around[2:])
        # Of all keys together: errors of single keys cancel.
        chord = struck.sum(1)
        padded = functional.pad(chord, (APART, APART))
        near = [padded[shift : shift + len(chord)] for shift in range(2 * APART + 1)]
        onsets = ((chord > ONSET) & (chord >= torch.stack(near).amax(0))).nonzero()[:, 0]
        times = onsets * seconds / (keys.shape[1] - 1)
        self.intervals = interval_table(joined(times.tolist()))
        classes = (torch.arange(KEYS) + LOWEST) % PITCH_CLASSES
        self.classes = torch.zeros(PITCH_CLASSES).index_add_(0, classes, held.sum(0).float())
        self.notes = int(peaks.sum())
        self.density = RARE + self.notes / max(seconds, len(keys) * seconds)


def likeness(known: Heard, new: Heard) -> float:
    """Return 0 for the same, less for others: by divergences (bits) of pitch classes and, twice,
    of times between onsets, and half of the octaves by which the density changes beyond ``FREE``.

    After silence, or nothing, all music is alike.
    """
    if not known.notes:
        return 0.0
    pairs = (known.classes, new.classes), (known.intervals, new.intervals)
    bits = [jensen_shannon(*pair) for pair in pairs]
    keys, rhythm = (1.0 if math.isnan(one) else one for one in bits)  # where one has nothing: 1 bit
    octaves = abs(math.log2(new.density / known.density))
    return -keys - RHYTHM * rhythm - 0.5 * max(0.0, octaves - FREE)
