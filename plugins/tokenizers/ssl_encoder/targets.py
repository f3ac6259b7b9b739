"""Make the ids that an encoder learns to predict: by a random quantizer, or by clusters.

Shape legend: B batch, N frames, G codebooks, V codes, C code width, M rows, E features.
"""

from __future__ import annotations

import math

import torch
import torchaudio
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from segue.plugins.tokenizers.common.spectra import PITCH_CLASSES, mean_and_slope
from segue.plugins.tokenizers.ssl_encoder.config import SslEncoderOptions
from segue.plugins.tokenizers.ssl_encoder.encoder import Mask, Mel

NUM_CEPSTRA = 13
SLOPE_REACH = 3  # spectra to either side
MOST_COUNTED = 20_000  # frames of a cluster; with this bound, later ones still move it a little
ROUNDS = 10  # of k-means on the first batch


class RandomQuantizer(nn.Module):
    """Choose the nearest of random unit vectors after a random projection; never trained.

    Chiu et al., arXiv 2202.01855, section 3.1.
    """

    projections: Tensor
    codebooks: Tensor

    def __init__(self, config: SslEncoderOptions) -> None:
        super().__init__()
        self.inputs = config.subframes * config.num_mels
        count, codes, width = config.num_codebooks, config.target_codes, config.code_width
        scale = math.sqrt(2 / (self.inputs + width))
        projections = torch.randn(count, self.inputs, width) * scale
        codebooks = functional.normalize(torch.randn(count, codes, width), dim=-1)
        self.register_buffer("projections", projections)
        self.register_buffer("codebooks", codebooks)

    def forward(self, mel: Mel, valid: Mask) -> Int64[Tensor, "B N G"]:
        stacked = mel.reshape(mel.shape[0], -1, self.inputs)  # a frame's spectra side by side
        points = torch.einsum("bni,gic->bngc", stacked, self.projections)
        # The nearest of unit vectors is the one with the largest product.
        return torch.einsum("bngc,gvc->bngv", points, self.codebooks).argmax(-1)


class OnlineClusters(nn.Module):
    """Run mini-batch k-means (Sculley, WWW 2010), one step for each training batch.

    The first batch sets the scale and the first centroids. Each centroid then is the mean of the
    frames that came to it.
    """

    mean: Tensor
    deviation: Tensor
    centroids: Tensor
    counts: Tensor

    def __init__(self, num_features: int, codes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("deviation", torch.ones(num_features))
        self.register_buffer("centroids", torch.zeros(codes, num_features))
        self.register_buffer("counts", torch.zeros(codes))

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "B N E"], valid: Mask) -> Int64[Tensor, "B N 1"]:
        """Return the ids of all frames; in training the centroids first learn from valid ones."""
        if self.training:
            self._learn(x[valid])
        points = (x - self.mean) / self.deviation
        return self._nearest(points.flatten(0, 1)).view(*x.shape[:2], 1)

    def _learn(self, rows: Float[Tensor, "M E"]) -> None:
        if self.counts.any():
            self._move((rows - self.mean) / self.deviation)
            return
        self.mean.copy_(rows.mean(0))
        self.deviation.copy_(rows.std(0, unbiased=False).clamp(min=1e-3))
        points = (rows - self.mean) / self.deviation
        chosen = torch.randint(len(points), (len(self.centroids),)).to(points.device)
        self.centroids.copy_(points[chosen])
        for _ in range(ROUNDS):
            self.counts.zero_()
            self._move(points)

    def _move(self, points: Float[Tensor, "M E"]) -> None:
        ids = self._nearest(points)
        new = torch.bincount(ids, minlength=len(self.counts)).to(points)
        sums = torch.zeros_like(self.centroids).index_add_(0, ids, points)
        total = (self.counts + new).clamp(min=1)[:, None]
        moved = (self.centroids * self.counts[:, None] + sums) / total
        self.centroids.copy_(torch.where(new[:, None] > 0, moved, self.centroids))
        self.counts.add_(new).clamp_(max=MOST_COUNTED)

    def _nearest(self, points: Float[Tensor, "M E"]) -> Int64[Tensor, "M"]:
        return torch.cdist(points, self.centroids).argmin(1)


class CepstralClusters(nn.Module):
    """Cluster mel cepstra and their slopes: HuBERT's first targets (arXiv 2106.07447, II.A)."""

    cosines: Tensor

    def __init__(self, config: SslEncoderOptions) -> None:
        super().__init__()
        self.subframes = config.subframes
        cosines = torchaudio.functional.create_dct(NUM_CEPSTRA, config.num_mels, "ortho")
        self.register_buffer("cosines", cosines.contiguous(), persistent=False)
        self.clusters = OnlineClusters(2 * NUM_CEPSTRA, config.target_codes)

    def forward(self, mel: Mel, valid: Mask) -> Int64[Tensor, "B N 1"]:
        num_spectra = valid.sum(1) * self.subframes
        features = mean_and_slope(
            mel @ self.cosines, num_spectra, valid.shape[1], self.subframes, SLOPE_REACH
        )
        ids: Tensor = self.clusters(features, valid)
        return ids


class ChromaClusters(nn.Module):
    """Cluster pitch classes below and above the middle band, and their onsets.

    They are to music what cepstra are to speech.
    """

    folding: Tensor

    def __init__(self, config: SslEncoderOptions) -> None:
        super().__init__()
        self.subframes = config.subframes
        notes = torch.arange(config.num_mels)
        places = (config.lowest_note + notes) % PITCH_CLASSES
        places = places + PITCH_CLASSES * (notes >= config.num_mels // 2)
        folding = functional.one_hot(places, 2 * PITCH_CLASSES).float()
        folding = folding / folding.sum(0).clamp(min=1)
        self.register_buffer("folding", folding, persistent=False)
        self.clusters = OnlineClusters(3 * PITCH_CLASSES, config.target_codes)

    def forward(self, mel: Mel, valid: Mask) -> Int64[Tensor, "B N 1"]:
        ids: Tensor = self.clusters(self.features(mel), valid)
        return ids

    def features(self, mel: Mel) -> Float[Tensor, "B N E"]:
        """Return each class's mean strength in both halves, and its growth from frame to frame."""
        spectra = mel.reshape(mel.shape[0], -1, self.subframes, mel.shape[2]).mean(2)
        strength = spectra.relu() @ self.folding.to(mel.dtype)
        whole = strength.unflatten(2, (2, PITCH_CLASSES)).mean(2)
        growth = torch.diff(whole, dim=1, prepend=whole[:, :1]).relu()
        return torch.cat([strength, growth], dim=2)


def perplexity(ids: Int64[Tensor, "M G"], codes: int) -> Float[Tensor, ""]:
    """Return how many codes are in use: the exponential of the entropy, averaged over codebooks."""
    found = []
    for column in ids.T:
        shares = torch.bincount(column, minlength=codes).float() / max(1, len(column))
        found.append(torch.special.entr(shares).sum().exp())
    return torch.stack(found).mean()
