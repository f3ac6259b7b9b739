"""Predict harmony: how strong the twelve pitch classes are in each frame.

MERT (Li et al., arXiv 2306.00107, section 3.2) predicts the constant-Q spectrum of hidden frames;
here it is folded into pitch classes.

Shape legend: B batch, M spectra, F bands of notes, N frames.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from segue.plugins.tokenizers.common.spectra import PITCH_CLASSES
from segue.plugins.tokenizers.ssl_encoder.augment import Masked, masked_figures
from segue.plugins.tokenizers.ssl_encoder.config import SslEncoderOptions
from segue.plugins.tokenizers.ssl_encoder.encoder import FLOOR, Encoder, Mask, Mel
from segue.plugins.tokenizers.ssl_encoder.targets import perplexity

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
