"""Semantic tokens of piano music from how loud each key's band is and how fast it grows.

No network and no scores. Spectra of a long window tell keys apart, those of a short one show when
something is struck (both as in ``note_kmeans``). Of each key that is louder than its neighbours
counts what partials of lower keys do not explain.

Shape legend: T samples, M frames (50 a second), N frames (tokens), D features, K keys.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from segue.plugins.tokenizers.common.options import HOP, KEYS, LOWEST, RATE, RegisterOptions
from segue.plugins.tokenizers.common.registers import RegisterTokenizer
from segue.plugins.tokenizers.common.spectra import Framing, note_filters

COMPRESSION = 1000.0  # of magnitudes: what is 60 dB below a full-scale sine begins to count
# Frames over which a band grows.
RISE = 3  # in spectra of the long window
SHORT_RISE = 2  # in those of the short one
GATE = 2.0  # times the short window's growth: most that counts of the long one's
#: Semitones from a key to its second to sixth partial, and what share of its level they may have.
PARTIALS = {12: 0.7, 19: 0.7, 24: 0.63, 28: 0.56, 31: 0.56}

Keys = Float[Tensor, "M K"]


class RegisterKMeansTokenizer(RegisterTokenizer):
    """Emit tokens that follow melody, harmony and rhythm."""

    filters: Tensor
    short_filters: Tensor

    def __init__(self, config: RegisterOptions) -> None:
        super().__init__(config)
        self.framing = Framing(HOP, config.pitch_window)
        self.short_framing = Framing(HOP, config.onset_window)
        notes = torch.arange(LOWEST, LOWEST + KEYS)
        for name, window in (
            ("filters", config.pitch_window),
            ("short_filters", config.onset_window),
        ):
            self.register_buffer(name, note_filters(notes, RATE, window), persistent=False)

    def row_features(self, wave: Float[Tensor, "T"]) -> Float[Tensor, "N D"]:
        """Return how much each key is struck, by frame, and how loud it is, compressed."""
        whole = functional.pad(wave, (0, -wave.shape[0] % self.spec.frame_size))[None]
        loud = _levels(whole, self.framing, self.filters)
        short = _levels(whole, self.short_framing, self.short_filters)
        when = functional.max_pool1d(_growth(short, SHORT_RISE).T, 3, 1, 1).T  # one frame off
        struck = _peaks(_growth(loud, RISE)).minimum(GATE * when)
        struck = struck - _explained(struck)
        sounding = _peaks(loud) - _explained(loud)
        pool = self.config.pool
        return self.by_register(
            struck.clamp(min=0).unflatten(0, (-1, pool)),
            sounding.clamp(min=0).unflatten(0, (-1, pool)).mean(1, keepdim=True),
        )


def _levels(wave: Tensor, framing: Framing, filters: Tensor) -> Keys:
    return torch.log1p(COMPRESSION * (framing.analyse(wave)[0].abs() @ filters.to(wave.dtype)))


def _around(x: Keys) -> Keys:
    """Return the largest value of each key and its two neighbours."""
    return functional.max_pool1d(x, 3, 1, 1)


def _growth(levels: Keys, frames: int) -> Keys:
    """Return how much each key grew over so many frames, beyond its neighbours' vibrato.

    The largest of the earlier neighbours is subtracted (SuperFlux: Böck and Widmer, DAFx 2013).
    """
    before = torch.cat([levels[:1].expand(frames, -1), levels])[: len(levels)]
    return (levels - _around(before)).clamp(min=0)


def _peaks(x: Keys) -> Keys:
    """Keep what is as large as both neighbours."""
    return x * (x >= _around(x))


def _explained(x: Keys) -> Keys:
    """Return what of each key the partials of lower keys explain."""
    moved = (functional.pad(x * share, (up, -up)) for up, share in PARTIALS.items())
    return torch.stack(list(moved)).amax(0)
