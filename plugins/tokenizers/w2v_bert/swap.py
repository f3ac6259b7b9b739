"""Swapped prediction: what a slow copy of the encoder says of another disturbance of the same row.

Shape legend: B batch, N frames, M frames of all rows, D width, V prototypes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from segue.plugins.tokenizers.w2v_bert.config import W2vBertOptions
from segue.plugins.tokenizers.w2v_bert.encoder import Encoder, Mask
from segue.plugins.tokenizers.w2v_bert.masking import Masked
from segue.plugins.tokenizers.w2v_bert.targets import perplexity

SHARPNESS = 0.05  # temperature of the targets' cosines
SINKHORN_ROUNDS = 3
TINY = 1e-30


class PrototypeHead(nn.Module):
    """Cosines between projected activations and prototypes."""

    def __init__(self, config: W2vBertOptions) -> None:
        super().__init__()
        self.projection = nn.Linear(config.width, config.code_width)
        self.prototypes = nn.Parameter(torch.randn(config.target_codes, config.code_width))

    def forward(self, states: Float[Tensor, "M D"]) -> Float[Tensor, "M V"]:
        points = functional.normalize(self.projection(states), dim=-1)
        return points @ functional.normalize(self.prototypes, dim=-1).T


class Swap(nn.Module):
    """Swapped prediction (Chang et al., arXiv 2305.11072): from a row with hidden spans, tell which
    prototypes another disturbance of the row goes to. As in DINO (Caron et al., arXiv 2104.14294)
    the other one is seen, whole, by a slow copy of the encoder and of the head; prototypes are
    given alike in each batch, so not all frames can go to one."""

    followed: Tensor

    def __init__(self, config: W2vBertOptions, encoder: Encoder) -> None:
        super().__init__()
        self.temperature, self.seen_weight = config.temperature, config.seen_weight
        self.decay, self.layer = config.copy_decay, config.layer
        self.fresh = config.fresh_copy
        self.head = PrototypeHead(config)
        self.encoder_copy = copy.deepcopy(encoder).requires_grad_(False)
        self.head_copy = copy.deepcopy(self.head).requires_grad_(False)
        self.register_buffer("followed", torch.tensor(False))

    def forward(self, batch: Masked, encoder: Encoder) -> Mapping[str, Tensor]:
        """``loss``; of hidden frames ``masked`` (nats), ``accuracy`` of the likeliest prototype and
        ``perplexity`` of these; of the others ``seen``, if it counts."""
        if self.training:
            self._follow(encoder)
        found = self._targets(batch)
        targets = found.new_zeros(*batch.valid.shape, found.shape[1])
        targets[batch.valid] = found
        masked, accuracy = self._nats(batch, batch.hidden, targets)
        ids = targets[batch.hidden].argmax(1, keepdim=True)
        figures = {"accuracy": accuracy, "perplexity": perplexity(ids, targets.shape[2])}
        if not self.seen_weight:
            return {"loss": masked, "masked": masked, **figures}
        seen, _ = self._nats(batch, batch.valid & ~batch.hidden, targets)
        return {"loss": masked + self.seen_weight * seen, "masked": masked, "seen": seen, **figures}

    def _nats(
        self, batch: Masked, chosen: Mask, targets: Float[Tensor, "B N V"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Mean loss and accuracy over chosen frames; of no frame, nothing."""
        scores, shares = self.head(batch.states[-1][chosen]) / self.temperature, targets[chosen]
        count = max(1, len(scores))
        loss = -(shares * scores.log_softmax(-1)).sum() / count
        return loss, (scores.argmax(-1) == shares.argmax(-1)).sum() / count

    @torch.no_grad()
    def _targets(self, batch: Masked) -> Float[Tensor, "M V"]:
        """Of all valid frames."""
        states = self.encoder_copy.eval()(batch.mel, batch.valid, self.layer)[-1][batch.valid]
        # Differences between cosines are magnified here: not in half precision.
        with torch.autocast(states.device.type, enabled=False):
            cosines = self.head_copy(states.to(self.head.prototypes.dtype))
            return given_alike(cosines.float())

    @torch.no_grad()
    def _follow(self, encoder: Encoder) -> None:
        """Move the slow copies; at first they become what they are copies of, unless they are to
        begin with weights of their own."""
        decay = self.decay if self.followed or self.fresh else 0.0
        for slow, fast in ((self.encoder_copy, encoder), (self.head_copy, self.head)):
            for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
                old.lerp_(new, 1 - decay)
        self.followed.fill_(True)


def given_alike(cosines: Float[Tensor, "M V"]) -> Float[Tensor, "M V"]:
    """Shares of prototypes for each frame such that all prototypes get as much (Sinkhorn and Knopp;
    Caron et al., SwAV, arXiv 2006.09882, section 3.1)."""
    weights = ((cosines - 1) / SHARPNESS).exp()
    for _ in range(SINKHORN_ROUNDS):
        weights = weights / weights.sum(0, keepdim=True).clamp_min(TINY)
        weights = weights / weights.sum(1, keepdim=True).clamp_min(TINY)
    return weights
