"""Predict the prototypes that a slow copy of the encoder chooses for the same row, disturbed anew.

Shape legend: B batch, N frames, M frames of all rows, D width, V prototypes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from segue.plugins.tokenizers.ssl_encoder.augment import Masked, masked_figures
from segue.plugins.tokenizers.ssl_encoder.config import SslEncoderOptions
from segue.plugins.tokenizers.ssl_encoder.encoder import Encoder, Mask
from segue.plugins.tokenizers.ssl_encoder.targets import perplexity

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


class Swap(nn.Module):
    """Predict prototypes of another disturbance of the row (Chang et al., arXiv 2305.11072).

    As in DINO (Caron et al., arXiv 2104.14294) a slow copy of the encoder and of the head sees the
    other disturbance, without hidden spans. Each batch shares the prototypes out evenly, so that
    not all frames can go to one.
    """

    followed: Tensor

    def __init__(self, config: SslEncoderOptions, encoder: Encoder) -> None:
        super().__init__()
        self.temperature, self.seen_weight = config.temperature, config.seen_weight
        self.decay, self.layer = config.copy_decay, config.layer
        self.fresh = config.fresh_copy
        self.head = PrototypeHead(config)
        self.encoder_copy = copy.deepcopy(encoder).requires_grad_(False)
        self.head_copy = copy.deepcopy(self.head).requires_grad_(False)
        self.register_buffer("followed", torch.tensor(False))

    def forward(self, batch: Masked, encoder: Encoder) -> Mapping[str, Tensor]:
        """Return the figures of ``masked_figures``, losses in nats."""
        if self.training:
            self._follow(encoder)
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
        with torch.autocast(states.device.type, enabled=False):
            cosines = self.head_copy(states.to(self.head.prototypes.dtype))
            return share_out(cosines.float())

    @torch.no_grad()
    def _follow(self, encoder: Encoder) -> None:
        """Move the slow copies, at first all the way, unless they begin with their own weights."""
        decay = self.decay if self.followed or self.fresh else 0.0
        for slow, fast in ((self.encoder_copy, encoder), (self.head_copy, self.head)):
            for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
                old.lerp_(new, 1 - decay)
        self.followed.fill_(True)


def share_out(cosines: Float[Tensor, "M V"]) -> Float[Tensor, "M V"]:
    """Return each frame's shares of prototypes, such that all prototypes get equally much.

    Sinkhorn and Knopp; Caron et al., SwAV, arXiv 2006.09882, section 3.1.
    """
    weights = ((cosines - 1) / SHARPNESS).exp()
    for _ in range(SINKHORN_ROUNDS):
        weights = weights / weights.sum(0, keepdim=True).clamp_min(TINY)
        weights = weights / weights.sum(1, keepdim=True).clamp_min(TINY)
    return weights
