"""Where the ids to predict come from: a fixed random quantizer, or clusters that are learnt.

Shape legend: B batch, N frames, G codebooks, V codes, C code width, M rows, E features.
"""

from __future__ import annotations

import math

import torch
import torchaudio
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from segue.plugins.tokenizers.common.framing import with_edges
from segue.plugins.tokenizers.common.notes import PITCH_CLASSES
from segue.plugins.tokenizers.w2v_bert.config import W2vBertOptions
from segue.plugins.tokenizers.w2v_bert.encoder import Mask, Mel

NUM_CEPSTRA = 13
SLOPE_REACH = 3  # spectra to either side
MOST_COUNTED = 20_000  # frames of a cluster: later ones still move it a little
ROUNDS = 10  # of k-means on the first batch


def stacked(mel: Mel, subframes: int) -> Float[Tensor, "B N E"]:
    """The spectra of each frame side by side."""
    return mel.reshape(mel.shape[0], -1, subframes * mel.shape[2])


class RandomQuantizer(nn.Module):
    """Random projection, then the nearest of random unit vectors (Chiu et al., arXiv 2202.01855,
    section 3.1); never trained."""

    projections: Tensor
    codebooks: Tensor

    def __init__(self, config: W2vBertOptions) -> None:
        super().__init__()
        self.subframes = config.subframes
        inputs = config.subframes * config.num_mels
        count, codes, width = config.num_codebooks, config.target_codes, config.code_width
        projections = torch.randn(count, inputs, width) * math.sqrt(2 / (inputs + width))
        codebooks = functional.normalize(torch.randn(count, codes, width), dim=-1)
        self.register_buffer("projections", projections)
        self.register_buffer("codebooks", codebooks)

    def forward(self, mel: Mel, valid: Mask) -> Int64[Tensor, "B N G"]:
        points = torch.einsum("bni,gic->bngc", stacked(mel, self.subframes), self.projections)
        # Of unit vectors, the nearest is the one with the largest product.
        return torch.einsum("bngc,gvc->bngv", points, self.codebooks).argmax(-1)


class OnlineClusters(nn.Module):
    """Mini-batch k-means (Sculley, WWW 2010), one step for each training batch.

    Its first batch sets the scale and the first centroids; each centroid then is the mean of the
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
        """Ids of all frames; in training the centroids learn from the valid ones first."""
        if self.training:
            self._learn(x[valid])
        points = (x - self.mean) / self.deviation
        return self._nearest(points.flatten(0, 1)).view(*x.shape[:2], 1)

    def _learn(self, rows: Float[Tensor, "M E"]) -> None:
        if not self.counts.any():
            self.mean.copy_(rows.mean(0))
            self.deviation.copy_(rows.std(0, unbiased=False).clamp(min=1e-3))
            points = (rows - self.mean) / self.deviation
            chosen = torch.randint(len(points), (len(self.centroids),)).to(points.device)
            self.centroids.copy_(points[chosen])
            for _ in range(ROUNDS):
                self.counts.zero_()
                self._move(points)
        else:
            self._move((rows - self.mean) / self.deviation)

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
    """Clusters of mel cepstra and their slopes: the first targets of HuBERT (Hsu et al., arXiv
    2106.07447, section II.A)."""

    cosines: Tensor

    def __init__(self, config: W2vBertOptions) -> None:
        super().__init__()
        self.subframes = config.subframes
        cosines = torchaudio.functional.create_dct(NUM_CEPSTRA, config.num_mels, "ortho")
        self.register_buffer("cosines", cosines.contiguous(), persistent=False)
        self.clusters = OnlineClusters(2 * NUM_CEPSTRA, config.target_codes)

    def forward(self, mel: Mel, valid: Mask) -> Int64[Tensor, "B N 1"]:
        ids: Tensor = self.clusters(self.features(mel, valid), valid)
        return ids

    def features(self, mel: Mel, valid: Mask) -> Float[Tensor, "B N E"]:
        """Mean and slope of each coefficient over a frame's spectra."""
        cepstra = mel @ self.cosines
        reach, size = SLOPE_REACH, self.subframes
        padded = with_edges(cepstra, valid.sum(1) * size, mel.shape[1], reach)
        around = padded.unfold(1, size + 2 * reach, size)  # [B, N, C, W]
        offsets = torch.arange(around.shape[-1], device=mel.device, dtype=mel.dtype)
        offsets = offsets - offsets.mean()
        slope = (around * offsets).sum(-1) / offsets.square().sum()
        return torch.cat([around[..., reach : reach + size].mean(-1), slope], dim=2)


class ChromaClusters(nn.Module):
    """Clusters of how strong the twelve pitch classes are, below and above the middle band, and of
    their onsets: what cepstra are to speech."""

    folding: Tensor

    def __init__(self, config: W2vBertOptions) -> None:
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
        """Mean strength of each class in both halves, and its growth since the frame before."""
        spectra = mel.reshape(mel.shape[0], -1, self.subframes, mel.shape[2]).mean(2)
        strength = spectra.relu() @ self.folding.to(mel.dtype)
        whole = strength.unflatten(2, (2, PITCH_CLASSES)).mean(2)
        growth = torch.diff(whole, dim=1, prepend=whole[:, :1]).relu()
        return torch.cat([strength, growth], dim=2)


def perplexity(ids: Int64[Tensor, "M G"], codes: int) -> Float[Tensor, ""]:
    """How many codes are in use, on average over codebooks: the exponential of the entropy."""
    found = []
    for column in ids.T:
        shares = torch.bincount(column, minlength=codes).float() / max(1, len(column))
        found.append(torch.special.entr(shares).sum().exp())
    return torch.stack(found).mean()
