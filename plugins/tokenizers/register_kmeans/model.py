"""Semantic tokens of piano music from how loud each key's band is and how fast it grows.

No network and no scores. Spectra of a long window tell keys apart, those of a short one show when
something is struck. Of each key that is louder than its neighbours counts what partials of lower
keys do not explain.

A token is the nearest of the clusters of a register's features (product quantisation: Jégou et al.,
IEEE TPAMI 2011). One cluster of everything cannot hold several voices, whose combinations are too
many.

Shape legend: B batch, T samples, Q levels, M frames (50 a second), N frames (tokens), D features,
R = onsets of a token + 1, K keys.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from segue.core.interfaces import Ids, Tokens
from segue.plugins.tokenizers.common.kmeans import WindowedTokenizer
from segue.plugins.tokenizers.common.spectra import Framing, note_filters
from segue.plugins.tokenizers.register_kmeans.config import (
    HOP,
    KEYS,
    LOWEST,
    RATE,
    RegisterKMeansOptions,
)
from segue.plugins.tokenizers.register_kmeans.likeness import Heard, likeness

COMPRESSION = 1000.0  # of magnitudes: what is 60 dB below a full-scale sine begins to count
# Frames over which a band grows.
RISE = 3  # in spectra of the long window
SHORT_RISE = 1  # in those of the short one
GATE = 2.0  # times the short window's growth: most that counts of the long one's
#: Semitones from a key to its second to sixth partial, and what share of its level they may have.
PARTIALS = {12: 0.7, 19: 0.7, 24: 0.63, 28: 0.56, 31: 0.56}

Keys = Float[Tensor, "M K"]


class RegisterKMeansTokenizer(WindowedTokenizer):
    """Emit tokens that follow melody, harmony and rhythm: one for each register of the keyboard."""

    config: RegisterKMeansOptions
    order: Tensor
    weighting: Tensor
    filters: Tensor
    short_filters: Tensor

    def __init__(self, config: RegisterKMeansOptions) -> None:
        rows = config.pool + 1  # features of a key
        sizes = [rows * (last - first) for first, last in config.registers]
        super().__init__(config, sum(sizes), sizes)
        # Features of a register lie together: onsets of each frame, then what sounds.
        key = torch.arange(rows * KEYS).reshape(rows, KEYS)
        order = torch.cat([key[:, first:last].flatten() for first, last in config.registers])
        weighting = torch.full((rows, KEYS), config.onset_weight)
        weighting[-1] = 1.0
        self.framing = Framing(HOP, config.pitch_window)
        self.short_framing = Framing(HOP, config.onset_window)
        notes = torch.arange(LOWEST, LOWEST + KEYS)
        for name, tensor in (
            ("order", order),
            ("weighting", weighting.flatten()[order]),
            ("filters", note_filters(notes, RATE, config.pitch_window)),
            ("short_filters", note_filters(notes, RATE, config.onset_window)),
        ):
            self.register_buffer(name, tensor, persistent=False)

    def row_features(self, wave: Float[Tensor, "T"]) -> Float[Tensor, "N D"]:
        """Return how much each key is struck, by frame, and how loud it is, compressed."""
        whole = functional.pad(wave, (0, -wave.shape[0] % self.spec.frame_size))[None]
        loud = _levels(whole, self.framing, self.filters)
        short = _levels(whole, self.short_framing, self.short_filters)
        struck = _peaks(_growth(loud, RISE)).minimum(GATE * _growth(short, SHORT_RISE))
        struck = struck - _explained(struck)
        sounding = _peaks(loud) - _explained(loud)
        onsets = struck.clamp(min=0).unflatten(0, (-1, self.config.pool))  # [N, pool, K]
        held = sounding.clamp(min=0).unflatten(0, (-1, self.config.pool)).mean(1, keepdim=True)
        return torch.cat([onsets, held], dim=1).flatten(1)[:, self.order]

    def weights(self) -> Float[Tensor, "D"]:
        """Undo the normalisation: a rare key is as important as another."""
        return self.weighting * self.deviation

    def keys(self, ids: Ids) -> Float[Tensor, "B N R K"]:
        """Return what tokens say of each key: how much it is struck, by frame, and sounds."""
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
