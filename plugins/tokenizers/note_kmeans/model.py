"""Semantic tokens of piano music: which keys are struck and which sound, by register.

A network transcribes; a token per register is the nearest of the clusters of what it hears there
(product quantisation: Jégou et al., IEEE TPAMI 2011). One cluster of everything cannot hold several
voices, whose combinations are too many. The network was taught by scores, so these tokens are not
found in audio alone as AudioLM's are.

Shape legend: B batch, N frames (tokens), M frames of the network, D features,
R = frames per token + 1, K keys.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from segue.core.interfaces import Ids, Lengths, Wave
from segue.plugins.tokenizers.common.kmeans import KMeansTokenizer
from segue.plugins.tokenizers.common.windows import encode_rows
from segue.plugins.tokenizers.note_kmeans.config import KEYS, NoteKMeansOptions
from segue.plugins.tokenizers.note_kmeans.network import NoteNetwork


class NoteKMeansTokenizer(KMeansTokenizer):
    """The network is used as it was trained; only the clusters are fitted.

    Args:
        config: options.
    """

    config: NoteKMeansOptions
    order: Tensor
    weighting: Tensor

    def __init__(self, config: NoteKMeansOptions) -> None:
        rows = config.pool + 1  # features of a key
        sizes = [rows * (last - first) for first, last in config.registers]
        super().__init__(config, sum(sizes), sizes)
        self.network = NoteNetwork(config).requires_grad_(False)
        self.window = config.frames(config.window_seconds)
        self.margin = config.frames(config.margin_seconds)
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
        found: Tensor = points[..., self.order.argsort()].unflatten(2, (-1, KEYS))
        return found

    def features(self, wave: Wave, lengths: Lengths) -> Float[Tensor, "B N D"]:
        """Return probabilities, each row on its own."""
        self.network.eval()
        size, width = self.spec.frame_size, self.mean.shape[0]
        return encode_rows(
            self._probabilities, wave, lengths, size, width, self.window, self.margin
        )

    def _probabilities(self, wave: Float[Tensor, "T"]) -> Float[Tensor, "N D"]:
        whole = functional.pad(wave, (0, -wave.shape[0] % self.spec.frame_size))
        struck, sounding = self.network(whole[None].to(self.centroids.dtype))
        pool = self.config.pool
        onsets = struck[0].sigmoid().unflatten(0, (-1, pool))
        held = sounding[0].sigmoid().unflatten(0, (-1, pool)).mean(1, keepdim=True)
        return torch.cat([onsets, held], dim=1).flatten(1)[:, self.order]
