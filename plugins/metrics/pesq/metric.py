"""Perceptual evaluation of speech quality, wide band (ITU-T P.862.2), by ``pesq``."""

from __future__ import annotations

import math

from jaxtyping import Float
from pesq import BufferTooShortError, NoUtterancesError, pesq
from torch import Tensor

from segue.core.audio import SILENCE, resample
from segue.core.interfaces import Metric

RATE = 16_000  # of the wide-band mode
LOWEST = 0.999  # where the mapping of P.862.2 ends


class Pesq(Metric):
    """Predict the mean opinion score of listeners, 1 to 4.64; both are compared at 16 kHz."""

    unit = "MOS"

    def __call__(
        self, reference: Float[Tensor, "T"], audio: Float[Tensor, "T"], sample_rate: int
    ) -> float:
        reference, audio = (resample(wave, sample_rate, RATE) for wave in (reference, audio))
        if reference.abs().max() < SILENCE:
            return math.nan
        try:
            # Silence has no level that could be brought to the standard one.
            heard = audio if audio.abs().max() >= SILENCE else reference
            score = float(pesq(RATE, reference.numpy(), heard.numpy(), "wb"))
        except (NoUtterancesError, BufferTooShortError):
            return math.nan
        return score if heard is audio else LOWEST
