"""Scale-invariant signal-to-distortion ratio (Le Roux et al., arXiv 1811.02508)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from segue.core.interfaces import Metric

EPSILON = 1e-9


class SiSdr(Metric):
    """10 log10 of the energy of the scaled reference over that of what is left, in dB."""

    unit = "dB"

    def __call__(
        self, reference: Float[Tensor, "T"], audio: Float[Tensor, "T"], sample_rate: int
    ) -> float:
        reference, audio = reference - reference.mean(), audio - audio.mean()
        scale = (reference @ audio) / (reference @ reference + EPSILON)
        target = scale * reference
        noise = audio - target
        ratio = (target @ target + EPSILON) / (noise @ noise + EPSILON)
        return float(10 * torch.log10(ratio))
