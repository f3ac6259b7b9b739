"""Scale-invariant signal-to-distortion ratio (Le Roux et al., arXiv 1811.02508)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from segue.core.audio import SILENCE
from segue.core.interfaces import Metric

EPSILON = 1e-9
LOWEST = -60.0  # dB, of silence; a second of unrelated noise has about -40


class SiSdr(Metric):
    """10 log10 of the energy of the scaled reference over that of what is left, in dB.

    Silence has no ratio: it has the lowest figure, -60 dB, and nothing has less.
    """

    unit = "dB"

    def __call__(
        self, reference: Float[Tensor, "T"], audio: Float[Tensor, "T"], sample_rate: int
    ) -> float:
        reference, audio = reference - reference.mean(), audio - audio.mean()
        if reference.abs().max() < SILENCE:
            return math.nan
        if audio.abs().max() < SILENCE:
            return LOWEST
        scale = (reference @ audio) / (reference @ reference + EPSILON)
        target = scale * reference
        noise = audio - target
        ratio = (target @ target + EPSILON) / (noise @ noise + EPSILON)
        return max(LOWEST, float(10 * torch.log10(ratio)))
