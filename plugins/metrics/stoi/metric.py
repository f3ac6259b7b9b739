"""Short-time objective intelligibility (Taal et al., IEEE TASLP 19(7), 2011), by ``pystoi``."""

from __future__ import annotations

import math
import warnings

from jaxtyping import Float
from pystoi import stoi
from torch import Tensor

from segue.core.audio import SILENCE
from segue.core.interfaces import Metric

TOO_SHORT = "Not enough STFT frames"  # pystoi warns of it and returns 1e-5


class Stoi(Metric):
    """Correlate short-time band envelopes, about 0 to 1: how much of speech is understood."""

    def __call__(
        self, reference: Float[Tensor, "T"], audio: Float[Tensor, "T"], sample_rate: int
    ) -> float:
        if reference.abs().max() < SILENCE:
            return math.nan
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=TOO_SHORT, category=RuntimeWarning)
            try:
                return float(stoi(reference.numpy(), audio.numpy(), sample_rate, extended=False))
            except RuntimeWarning:
                return math.nan
