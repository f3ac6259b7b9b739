"""Virtual speech quality objective listener, version 3 (Chinen et al., arXiv 2004.09584)."""

from __future__ import annotations

import math

import numpy
from jaxtyping import Float
from torch import Tensor
from visqol import VisqolApi

from segue.core.audio import SILENCE, resample
from segue.core.errors import PluginError
from segue.core.interfaces import Metric
from segue.plugins.metrics.visqol.config import VisqolOptions

RATES = {"speech": 16_000, "audio": 48_000}
LOWEST = 1.0


class Visqol(Metric):
    """Predict the mean opinion score, 1 to 5, from the similarity of gammatone spectrograms.

    Args:
        config: options.
    """

    unit = "MOS"
    costly = True

    def __init__(self, config: VisqolOptions) -> None:
        self.rate = RATES[config.mode]
        self._api = VisqolApi()
        lattice = config.lattice if config.mode == "speech" else None
        try:
            self._api.create(mode=config.mode, use_lattice_model=lattice)
        except ImportError as error:
            raise PluginError(
                "visqol.v1:lattice", str(error), "pip install 'visqol-python[lattice]'"
            ) from error

    def __call__(
        self, reference: Float[Tensor, "T"], audio: Float[Tensor, "T"], sample_rate: int
    ) -> float:
        if reference.abs().max() < SILENCE:
            return math.nan
        if audio.abs().max() < SILENCE:
            return LOWEST
        waves = (resample(wave, sample_rate, self.rate) for wave in (reference, audio))
        pair = (wave.double().numpy() for wave in waves)
        try:
            with numpy.errstate(all="ignore"):
                return float(self._api.measure_from_arrays(*pair, self.rate).moslqo)
        except (IndexError, ValueError):  # the reference holds no patch that could be compared
            return math.nan
