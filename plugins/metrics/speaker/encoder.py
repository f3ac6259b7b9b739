"""A speaker encoder (Wan et al., arXiv 1710.10467) with the weights that Resemblyzer ships."""

from __future__ import annotations

import math

import torch
import torchaudio.functional
from jaxtyping import Float
from torch import Tensor, nn

from segue.core.audio import SILENCE, resample
from segue.plugins.metrics.packaged import packaged_file

PACKAGE, WEIGHTS = "resemblyzer", "pretrained.pt"
RATE, BANDS, WIDTH = 16_000, 40, 256
WINDOW, HOP = 400, 160
PART, STEP, COVERAGE = 160, 77, 0.75  # frames of a part, between parts; least of the last part
LEVEL_DB = -30.0  # quieter audio is brought to it


class SpeakerEncoder(nn.Module):
    """Embed a voice by three LSTM layers over mel spectra of 1.6 s; parts of an utterance are
    averaged.

    The computation is that of Resemblyzer 0.1.4, of which only the weights are used, so that its
    own dependencies need not be installed. Pauses are left in: no voice activity detection.

    Raises:
        PluginError: if Resemblyzer is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(BANDS, WIDTH, 3, batch_first=True)
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        bank = torchaudio.functional.melscale_fbanks(
            WINDOW // 2 + 1, 0.0, RATE / 2, BANDS, RATE, norm="slaney", mel_scale="slaney"
        )
        self.register_buffer("bank", bank, persistent=False)
        path = packaged_file(PACKAGE, WEIGHTS, "speaker.v1", "pip install 'segue[metrics]'")
        content = torch.load(path, map_location="cpu", weights_only=True)
        own = self.state_dict()
        self.load_state_dict({key: content["model_state"][key] for key in own})
        self.eval()

    @torch.inference_mode()
    def forward(self, wave: Float[Tensor, "T"], sample_rate: int) -> Float[Tensor, "256"]:
        """Return an embedding of length 1; zeros for silence, which is nobody's voice."""
        wave = resample(wave, sample_rate, RATE) if sample_rate != RATE else wave
        if not wave.numel() or wave.abs().max() < SILENCE:
            return torch.zeros(WIDTH)
        level = 10 * math.log10(float(wave.square().mean()))
        wave = wave * 10 ** (max(0.0, LEVEL_DB - level) / 20)
        starts = _starts(wave.shape[0])
        missing = (starts[-1] + PART) * HOP - wave.shape[0]
        mel = self._mel(nn.functional.pad(wave, (0, max(0, missing))))
        parts = torch.stack([mel[start : start + PART] for start in starts])
        _, (hidden, _) = self.lstm(parts)
        voices = nn.functional.normalize(self.linear(hidden[-1]).relu(), dim=1)
        return nn.functional.normalize(voices.mean(0), dim=0)

    def _mel(self, wave: Float[Tensor, "T"]) -> Float[Tensor, "N 40"]:
        assert isinstance(self.window, Tensor) and isinstance(self.bank, Tensor)
        spectrum = torch.stft(
            wave, WINDOW, HOP, window=self.window, pad_mode="constant", return_complex=True
        )
        return spectrum.abs().square().T @ self.bank


def _starts(samples: int) -> list[int]:
    """Return the first frames of the parts of an utterance."""
    frames = math.ceil((samples + 1) / HOP)
    starts = list(range(0, max(1, frames - PART + STEP + 1), STEP))
    if len(starts) > 1 and (samples - starts[-1] * HOP) / (PART * HOP) < COVERAGE:
        starts.pop()
    return starts
