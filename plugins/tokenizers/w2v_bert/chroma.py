"""Masked prediction of harmony: how strong the twelve pitch classes are in each frame.

As MERT (Li et al., arXiv 2306.00107, section 3.2) is taught by the constant-Q spectrum of what is
hidden, but folded into pitch classes.

Shape legend: B batch, M spectra, F bands of notes, N frames.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from segue.plugins.tokenizers.common.notes import PITCH_CLASSES
from segue.plugins.tokenizers.w2v_bert.config import W2vBertOptions
from segue.plugins.tokenizers.w2v_bert.encoder import FLOOR, Encoder, Mask, Mel
from segue.plugins.tokenizers.w2v_bert.masking import Masked
from segue.plugins.tokenizers.w2v_bert.targets import perplexity

FAINT = 0.2  # of a row's root mean square magnitude: what is fainter hardly counts
LEAST_NORM, LEAST_CONTRAST = 0.5, 0.3  # a shorter vector is not stretched to unit length
REACH = 3  # frames over which targets are averaged


class ChromaRegression(nn.Module):
    """Tell the chroma of a row, as it is, from its disturbed copy with hidden spans."""

    folding: Tensor

    def __init__(self, config: W2vBertOptions) -> None:
        super().__init__()
        self.subframes, self.seen_weight = config.subframes, config.seen_weight
        classes = (config.lowest_note + torch.arange(config.num_mels)) % PITCH_CLASSES
        folding = functional.one_hot(classes, PITCH_CLASSES).float()
        # No class is stronger for having more bands.
        folding = folding / folding.sum(0) * (config.num_mels / PITCH_CLASSES)
        self.register_buffer("folding", folding, persistent=False)
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, PITCH_CLASSES)

    def forward(self, batch: Masked, encoder: Encoder) -> Mapping[str, Tensor]:
        """``loss``; of hidden frames ``masked`` (squared error, summed over classes), ``accuracy``
        of the strongest class and ``perplexity`` of it; of the others ``seen``, if it counts.

        Args:
            batch: whose spectra are logarithms of magnitudes, not normalised.
            encoder: not needed.
        """
        targets = self.targets(batch.mel, batch.valid)
        errors, found = self._told(batch, batch.hidden, targets)
        strongest = targets[batch.hidden].argmax(1, keepdim=True)
        right = (found.argmax(1, keepdim=True) == strongest).float().mean()
        figures = {"accuracy": right, "perplexity": perplexity(strongest, PITCH_CLASSES)}
        if not self.seen_weight:
            return {"loss": errors, "masked": errors, **figures}
        seen, _ = self._told(batch, batch.valid & ~batch.hidden, targets)
        return {"loss": errors + self.seen_weight * seen, "masked": errors, "seen": seen, **figures}

    def targets(self, mel: Mel, valid: Mask) -> Float[Tensor, "B N 12"]:
        """Strength of each class less that of all on average, of at most unit length: what sounds
        everywhere, such as noise, tells little."""
        magnitudes = (mel.exp() - FLOOR).clamp(min=0)
        inside = valid.repeat_interleave(self.subframes, dim=1)[..., None]
        count = (inside.sum((1, 2), keepdim=True) * mel.shape[2]).clamp(min=1)
        level = ((magnitudes * inside).square().sum((1, 2), keepdim=True) / count).sqrt()
        frames = magnitudes.unflatten(1, (-1, self.subframes)).mean(2)
        strength = torch.log1p(frames / (FAINT * level + FLOOR)) @ self.folding.to(mel.dtype)
        strength = strength / strength.norm(dim=2, keepdim=True).clamp(min=LEAST_NORM)
        contrast = strength - strength.mean(2, keepdim=True)
        contrast = contrast / contrast.norm(dim=2, keepdim=True).clamp(min=LEAST_CONTRAST)
        there = valid[..., None].to(contrast)
        return _around(contrast * there) / _around(there).clamp(min=1 / REACH) * there

    def _told(
        self, batch: Masked, chosen: Mask, targets: Float[Tensor, "B N 12"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "M 12"]]:
        """Mean error over chosen frames, and what is told of them; of no frame, nothing."""
        found = self.head(self.norm(batch.states[-1][chosen]))
        errors = (found - targets[chosen]).square().sum() / max(1, len(found))
        return errors, found


def _around(x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
    """Means over ``REACH`` frames, 0 beyond the ends."""
    return functional.avg_pool1d(x.transpose(1, 2), REACH, 1, REACH // 2).transpose(1, 2)
