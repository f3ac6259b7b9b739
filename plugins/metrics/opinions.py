"""Predict the opinion that listeners would have of speech."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy
import torch
from jaxtyping import Float
from torch import Tensor

from segue.core.metrics import Continuation, ContinuationMetric, Measured
from segue.plugins.metrics.common import (
    for_speech,
    of_each,
    onnx_session,
    packaged_file,
    with_truth,
)

PACKAGE, MODEL = "speechmos", "dnsmos_models/sig_bak_ovr.onnx"
WINDOW, STEP = 144_160, 16_000
#: From the network's numbers to opinions, highest power first; of DNSMOS's own code.
POLYNOMIALS = {
    "signal": (-0.08397278, 1.22083953, 0.0052439),
    "background": (-0.13166888, 1.60915514, -0.39604546),
    "overall": (-0.06766283, 1.11546468, 0.04602535),
}


class Naturalness(ContinuationMetric):
    """Predict listeners' opinions, 1 to 5, of the speech ``signal``, of the ``background`` and
    ``overall``, each with that of the recording's own continuation as ``truth_...``, by DNSMOS
    P.835 (Reddy et al., arXiv 2110.01763).

    The predictor was trained on noisy and denoised speech: it hears noise and distortion, and
    whether it sounds like a voice, not whether words make sense. Silence has none.
    """

    domains = ("speech",)

    def __init__(self) -> None:
        path = packaged_file(PACKAGE, MODEL, "naturalness.v1", "pip install 'segue[metrics]'")
        self._session = onnx_session(path)

    def measure(self, records: Sequence[Continuation]) -> Measured:
        _, ours, truth = of_each(records, self.opinions)
        return Measured(list(map(with_truth, ours, truth)))

    def opinions(self, wave: Float[Tensor, "T"], sample_rate: int) -> dict[str, float]:
        """Return means over windows of 9.01 s; shorter audio is repeated until it fills one."""
        heard = for_speech(wave, sample_rate)
        if heard is None:
            return dict.fromkeys(POLYNOMIALS, math.nan)
        heard = (heard / heard.abs().max().clamp_min(1.0)).repeat(-(-WINDOW // heard.shape[0]))
        windows = heard.unfold(0, WINDOW, STEP).numpy().astype(numpy.float32)
        raw = numpy.stack([self._session.run(None, {"input_1": w[None]})[0][0] for w in windows])
        return {
            name: float(numpy.polyval(powers, raw[:, column]).mean())
            for column, (name, powers) in enumerate(POLYNOMIALS.items())
        }


class DistillMos(ContinuationMetric):
    """Predict listeners' opinion of speech, 1 to 5, by DistillMOS (Stahl and Gamper, arXiv
    2502.05356), with that of the recording's own continuation. Silence has none."""

    domains = ("speech",)

    def __init__(self) -> None:
        from distillmos import ConvTransformerSQAModel

        self._model = ConvTransformerSQAModel().eval()

    def measure(self, records: Sequence[Continuation]) -> Measured:
        _, ours, truth = of_each(records, self.opinion)
        return Measured(list(map(with_truth, ours, truth)))

    @torch.no_grad()
    def opinion(self, wave: Float[Tensor, "T"], sample_rate: int) -> dict[str, float]:
        heard = for_speech(wave, sample_rate)
        found = math.nan if heard is None else float(self._model(heard[None].float()))
        return {"opinion": found}
