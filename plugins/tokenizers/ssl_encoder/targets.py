"""Make what an encoder learns to predict: ids by a random quantizer or by clusters, chroma, and the
prototypes that a slow copy of the encoder chooses.

Shape legend: B batch, N frames, G codebooks, V codes or prototypes, C code width, M rows or frames,
E features, F bands of notes, D width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
import torchaudio
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from segue.core.collectives import from_first, places_among_ranks, summed
from segue.plugins.tokenizers.common.quantizer import (
    chosen_among_ranks,
    in_single_precision,
    nearest,
)
from segue.plugins.tokenizers.common.spectra import PITCH_CLASSES, mean_and_slope
from segue.plugins.tokenizers.ssl_encoder.config import SslEncoderOptions
from segue.plugins.tokenizers.ssl_encoder.encoder import (
    FLOOR,
    Encoder,
    Mask,
    Masked,
    Mel,
    masked_figures,
)

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
    frames that came to it, on all ranks. With a ``decay`` below 1 a step multiplies the weight of
    all earlier frames by it, for features that move.
    """

    mean: Tensor
    deviation: Tensor
    centroids: Tensor
    counts: Tensor

    def __init__(self, num_features: int, codes: int, decay: float = 1.0) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("deviation", torch.ones(num_features))
        self.register_buffer("centroids", torch.zeros(codes, num_features))
        self.register_buffer("counts", torch.zeros(codes))

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "B N E"], valid: Mask) -> Int64[Tensor, "B N 1"]:
        """Return the ids of all frames; in training the centroids first learn from valid ones."""
        if self.training:
            self._learn(x[valid], valid.sum(1))
        points = (x - self.mean) / self.deviation
        return nearest(points.flatten(0, 1), self.centroids).view(*x.shape[:2], 1)

    def _learn(self, rows: Float[Tensor, "M E"], counts: Int64[Tensor, "B"]) -> None:
        """Learn from the valid frames of all ranks, ``counts`` of each row of this one's batch."""
        if self.counts.any():
            self._move((rows - self.mean) / self.deviation)
            return
        places, total = places_among_ranks(counts)
        self.mean.copy_(summed(rows.sum(0)) / total)
        spread = summed((rows - self.mean).square().sum(0)) / total
        self.deviation.copy_(spread.sqrt().clamp(min=1e-3))
        points = (rows - self.mean) / self.deviation
        chosen = from_first(torch.randint(total, (len(self.centroids),)).to(points.device))
        self.centroids.copy_(chosen_among_ranks(points, places, total, chosen))
        for _ in range(ROUNDS):
            self.counts.zero_()
            self._move(points)

    def _move(self, points: Float[Tensor, "M E"]) -> None:
        ids = nearest(points, self.centroids)
        self.counts.mul_(self.decay)
        new = summed(torch.bincount(ids, minlength=len(self.counts)).to(points))
        sums = summed(torch.zeros_like(self.centroids).index_add_(0, ids, points))
        total = (self.counts + new).clamp(min=1)[:, None]
        moved = (self.centroids * self.counts[:, None] + sums) / total
        self.centroids.copy_(torch.where(new[:, None] > 0, moved, self.centroids))
        self.counts.add_(new).clamp_(max=MOST_COUNTED)


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
        return self.clusters(features, valid)


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
        return self.clusters(self.features(mel), valid)

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


FAINT = 0.2  # of a row's root mean square magnitude; fainter bands hardly count
LEAST_NORM, LEAST_CONTRAST = 0.5, 0.3  # a shorter vector is not stretched to unit length
REACH = 3  # frames over which targets are averaged


class ChromaRegression(nn.Module):
    """Predict the chroma of a row as it is from its disturbed copy with hidden spans."""

    folding: Tensor

    def __init__(self, config: SslEncoderOptions) -> None:
        super().__init__()
        self.subframes, self.seen_weight = config.subframes, config.seen_weight
        classes = (config.lowest_note + torch.arange(config.num_mels)) % PITCH_CLASSES
        folding = functional.one_hot(classes, PITCH_CLASSES).float()
        # A class with more bands must not be stronger for it.
        folding = folding / folding.sum(0) * (config.num_mels / PITCH_CLASSES)
        self.register_buffer("folding", folding, persistent=False)
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, PITCH_CLASSES)

    def forward(self, batch: Masked, encoder: Encoder) -> Mapping[str, Tensor]:
        """Return the figures of ``masked_figures`` for squared errors, summed over classes.

        Accuracy and perplexity are those of the strongest class.

        Args:
            batch: its spectra are logarithms of magnitudes, not normalised.
            encoder: not needed.
        """
        targets = self.targets(batch.mel, batch.valid)

        def compare(chosen: Mask) -> tuple[Tensor, Tensor]:
            found, wanted = self.head(self.norm(batch.states[-1][chosen])), targets[chosen]
            count = max(1, len(found))
            right = (found.argmax(1) == wanted.argmax(1)).sum() / count
            return (found - wanted).square().sum() / count, right

        strongest = targets[batch.hidden].argmax(1, keepdim=True)
        used = perplexity(strongest, PITCH_CLASSES)
        return masked_figures(batch, self.seen_weight, compare, used)

    def targets(self, mel: Mel, valid: Mask) -> Float[Tensor, "B N 12"]:
        """Return each class's strength minus the mean of all, of at most unit length.

        The mean is what sounds everywhere, such as noise.
        """
        magnitudes = (mel.exp() - FLOOR).clamp(min=0)
        inside = valid.repeat_interleave(self.subframes, dim=1)[..., None]
        count = (inside.sum((1, 2), keepdim=True) * mel.shape[2]).clamp(min=1)
        level = ((magnitudes * inside).square().sum((1, 2), keepdim=True) / count).sqrt()
        frames = magnitudes.unflatten(1, (-1, self.subframes)).mean(2)
        strength = torch.log1p(frames / (FAINT * level + FLOOR)) @ self.folding.to(mel.dtype)
        strength = strength / strength.norm(dim=2, keepdim=True).clamp(min=LEAST_NORM)
        contrast = strength - strength.mean(2, keepdim=True)
        contrast = contrast / contrast.norm(dim=2, keepdim=True).clamp(min=LEAST_CONTRAST)
        # Average over neighbours, of the valid ones only.
        counted = valid[..., None].to(contrast)
        smooth = _smoothed(contrast * counted) / _smoothed(counted).clamp(min=1 / REACH)
        return smooth * counted


def _smoothed(x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
    """Return means over ``REACH`` frames, with zeros beyond the ends."""
    return functional.avg_pool1d(x.transpose(1, 2), REACH, 1, REACH // 2).transpose(1, 2)


SHARPNESS = 0.05  # temperature of the targets' cosines
SINKHORN_ROUNDS = 3
TINY = 1e-30


class PrototypeHead(nn.Module):
    """Compute cosines between projected activations and prototypes."""

    def __init__(self, config: SslEncoderOptions) -> None:
        super().__init__()
        self.projection = nn.Linear(config.width, config.code_width)
        self.prototypes = nn.Parameter(torch.randn(config.target_codes, config.code_width))

    def forward(self, states: Float[Tensor, "M D"]) -> Float[Tensor, "M V"]:
        points = functional.normalize(self.projection(states), dim=-1)
        return points @ functional.normalize(self.prototypes, dim=-1).T


class SlowCopy(nn.Module):
    """Keep a copy of the encoder that follows it slowly.

    Targets then change less from step to step than what learns from them.
    """

    followed: Tensor

    def __init__(self, config: SslEncoderOptions, encoder: Encoder) -> None:
        super().__init__()
        self.decay, self.fresh = config.copy_decay, config.fresh_copy
        self.encoder_copy = copy.deepcopy(encoder).requires_grad_(False)
        self.register_buffer("followed", torch.tensor(False))

    @torch.no_grad()
    def follow(self, *pairs: tuple[nn.Module, nn.Module]) -> None:
        """Move each slow module, at first all the way, unless copies begin with own weights."""
        decay = self.decay if self.followed or self.fresh else 0.0
        for slow, fast in pairs:
            for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
                old.lerp_(new, 1 - decay)
        self.followed.fill_(True)


class Swap(SlowCopy):
    """Predict prototypes of another disturbance of the row (Chang et al., arXiv 2305.11072).

    As in DINO (Caron et al., arXiv 2104.14294) a slow copy of the encoder and of the head sees the
    other disturbance, without hidden spans. Each batch shares the prototypes out evenly, so that
    not all frames can go to one.
    """

    def __init__(self, config: SslEncoderOptions, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.temperature, self.seen_weight = config.temperature, config.seen_weight
        self.layer = config.layer
        self.head = PrototypeHead(config)
        self.head_copy = copy.deepcopy(self.head).requires_grad_(False)

    def forward(self, batch: Masked, encoder: Encoder) -> Mapping[str, Tensor]:
        """Return the figures of ``masked_figures``, losses in nats."""
        if self.training:
            self.follow((self.encoder_copy, encoder), (self.head_copy, self.head))
        found = self._targets(batch)
        targets = found.new_zeros(*batch.valid.shape, found.shape[1])
        targets[batch.valid] = found

        def compare(chosen: Mask) -> tuple[Tensor, Tensor]:
            scores = self.head(batch.states[-1][chosen]) / self.temperature
            shares, count = targets[chosen], max(1, len(scores))
            loss = -(shares * scores.log_softmax(-1)).sum() / count
            return loss, (scores.argmax(-1) == shares.argmax(-1)).sum() / count

        ids = targets[batch.hidden].argmax(1, keepdim=True)
        used = perplexity(ids, targets.shape[2])
        return masked_figures(batch, self.seen_weight, compare, used)

    @torch.no_grad()
    def _targets(self, batch: Masked) -> Float[Tensor, "M V"]:
        """Return the shares of prototypes of all valid frames."""
        states = self.encoder_copy.eval()(batch.mel, batch.valid, self.layer)[-1][batch.valid]
        # Small differences between cosines matter here: not in half precision.
        with in_single_precision(states):
            cosines = self.head_copy(states.to(self.head.prototypes.dtype))
            return share_out(cosines.float())


def share_out(cosines: Float[Tensor, "M V"]) -> Float[Tensor, "M V"]:
    """Return each frame's shares of prototypes, such that all prototypes get equally much.

    Sinkhorn and Knopp; Caron et al., SwAV, arXiv 2006.09882, section 3.1.
    """
    weights = ((cosines - 1) / SHARPNESS).exp()
    for _ in range(SINKHORN_ROUNDS):
        # Columns, then rows: the limit of this has equal sums of both.
        weights = weights / weights.sum(0, keepdim=True).clamp_min(TINY)
        weights = weights / weights.sum(1, keepdim=True).clamp_min(TINY)
    return weights
