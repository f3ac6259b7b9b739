"""Predict the opinion of listeners by DNSMOS P.835 (Reddy et al., arXiv 2110.01763) through ONNX
Runtime."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy
import onnxruntime
import torch
from jaxtyping import Float
from torch import Tensor

from segue.core.audio import SILENCE, resample
from segue.core.metrics import Continuation, ContinuationMetric, Measured
from segue.plugins.metrics.packaged import packaged_file

PACKAGE, MODEL = "speechmos", "dnsmos_models/sig_bak_ovr.onnx"
RATE, WINDOW, STEP = 16_000, 144_160, 16_000
#: From the network's numbers to opinions, highest power first; of DNSMOS's own code.
POLYNOMIALS = {
    "signal": (-0.08397278, 1.22083953, 0.0052439),
    "background": (-0.13166888, 1.60915514, -0.39604546),
    "overall": (-0.06766283, 1.11546468, 0.04602535),
}


class Naturalness(ContinuationMetric):
    """Predict listeners' opinions, 1 to 5, of the speech ``signal``, of the ``background`` and
    ``overall``, each with that of the recording's own continuation as ``truth_...``.

    The predictor was trained on noisy and denoised speech: it hears noise and distortion, and
    whether it sounds like a voice, not whether words make sense. Silence has none.
    """

    domains = ("speech",)

    def __init__(self) -> None:
        path = packaged_file(PACKAGE, MODEL, "naturalness.v1", "pip install 'segue[metrics]'")
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(str(path), settings)

    def measure(self, records: Sequence[Continuation]) -> Measured:
        rows = []
        for record in records:
            ours = self.opinions(record.continuation, record.sample_rate)
            real = self.opinions(record.truth, record.sample_rate)
            rows.append(ours | {f"truth_{name}": value for name, value in real.items()})
        return Measured(rows)

    def opinions(self, wave: Float[Tensor, "T"], sample_rate: int) -> dict[str, float]:
        """Return means over windows of 9.01 s; shorter audio is repeated until it fills one."""
        if not wave.numel() or wave.abs().max() < SILENCE:
            return dict.fromkeys(POLYNOMIALS, math.nan)
        wave = resample(wave, sample_rate, RATE) if sample_rate != RATE else wave
        wave = (wave / wave.abs().max().clamp_min(1.0)).repeat(-(-WINDOW // wave.shape[0]))
        windows = wave.unfold(0, WINDOW, STEP).numpy().astype(numpy.float32)
        raw = numpy.stack([self._session.run(None, {"input_1": w[None]})[0][0] for w in windows])
        return {
            name: float(numpy.polyval(powers, raw[:, column]).mean())
            for column, (name, powers) in enumerate(POLYNOMIALS.items())
        }
