"""Reconstruction losses of the spectral codec.

Log-mel and log-magnitude distances at several resolutions (Yamamoto et al., arXiv 1910.11480;
Défossez et al., arXiv 2210.13438), and a distance of compressed complex spectra (Braun & Tashev,
arXiv 2009.12286) that ties phases where they can be coded.
"""

from __future__ import annotations

from typing import cast

import torch
import torchaudio
from jaxtyping import Complex, Float
from torch import Tensor, nn

from segue.plugins.tokenizers.spectral_codec.config import LossWeights
from segue.plugins.tokenizers.spectral_codec.spectral import COMPRESSION

# (samples of the window, mel bands). Hops are a quarter of the window.
RESOLUTIONS = ((256, 32), (512, 64), (1024, 80), (2048, 96))
# Some way above a 16-bit file's own noise: nothing is gained by matching what is below.
MAGNITUDE_FLOOR = 1e-5
POWER_FLOOR = 1e-12
SILENT_POWER = 1e-5  # of a wave at -50 dB


class Resolution(nn.Module):
    """The losses at one window size.

    Args:
        sample_rate: samples per second.
        window: samples of the window.
        num_mels: mel bands.
    """

    def __init__(self, sample_rate: int, window: int, num_mels: int) -> None:
        super().__init__()
        self.size, self.hop = window, window // 4
        filters = torchaudio.functional.melscale_fbanks(
            window // 2 + 1, 0.0, sample_rate / 2, num_mels, sample_rate, norm=None, mel_scale="htk"
        )
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    def forward(
        self, wave: Float[Tensor, "B T"], target: Float[Tensor, "B T"]
    ) -> dict[str, Float[Tensor, ""]]:
        with torch.no_grad():
            there = self._spectrum(target)
            there_size = _magnitude(there)
        here = self._spectrum(wave)
        here_size = _magnitude(here)
        filters = cast(Tensor, self.filters)
        mel = _log(here_size.transpose(1, 2) @ filters) - _log(there_size.transpose(1, 2) @ filters)
        # Over the whole batch, so that a silent crop divides nothing by zero.
        energy = there_size.norm() + 1e-3 * there_size.numel() ** 0.5
        return {
            "mel": mel.abs().mean(),
            "log_magnitude": (_log(here_size) - _log(there_size)).abs().mean(),
            "convergence": (here_size - there_size).norm() / energy,
            "complex_stft": _complex_distance(here, here_size, there, there_size),
        }

    def _spectrum(self, wave: Float[Tensor, "B T"]) -> Complex[Tensor, "B F M"]:
        window = cast(Tensor, self.window)
        spectrum = torch.stft(
            wave, self.size, self.hop, window=window, pad_mode="constant", return_complex=True
        )
        return spectrum * (2.0 / self.size)


def _relative_error(wave: Float[Tensor, "B T"], target: Float[Tensor, "B T"]) -> Tensor:
    """Mean over rows of the error's share of the amplitude; what is near silence counts little."""
    error = (wave - target).square().mean(1) / (target.square().mean(1) + SILENT_POWER)
    return (error + 1e-4).sqrt().mean()  # the slope of a root has no bound at zero


def _magnitude(spectrum: Complex[Tensor, "B F M"]) -> Float[Tensor, "B F M"]:
    # Not ``abs``, whose gradient is undefined at zero.
    return (spectrum.real.square() + spectrum.imag.square() + POWER_FLOOR).sqrt()


def _log(magnitude: Tensor) -> Tensor:
    return torch.log(magnitude + MAGNITUDE_FLOOR)


def _complex_distance(
    here: Tensor, here_size: Tensor, there: Tensor, there_size: Tensor
) -> Float[Tensor, ""]:
    """Mean L1 distance of the spectra with their magnitudes raised to ``COMPRESSION``."""
    exponent = COMPRESSION - 1.0
    gap = torch.view_as_real(here * here_size.pow(exponent) - there * there_size.pow(exponent))
    return gap.abs().mean()


class ReconstructionLoss(nn.Module):
    """The weighted sum of all reconstruction losses, and each by itself.

    Args:
        sample_rate: samples per second.
        weights: of the losses.
    """

    def __init__(self, sample_rate: int, weights: LossWeights) -> None:
        super().__init__()
        self.weights = weights
        resolutions = (Resolution(sample_rate, size, mels) for size, mels in RESOLUTIONS)
        self.resolutions = nn.ModuleList(resolutions)

    def forward(
        self, wave: Float[Tensor, "B T"], target: Float[Tensor, "B T"]
    ) -> dict[str, Float[Tensor, ""]]:
        """Both waves must be zero beyond each row's length."""
        parts = [resolution(wave, target) for resolution in self.resolutions]
        named = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        named["waveform"] = _relative_error(wave, target)
        weights = self.weights.model_dump()
        total = torch.stack([weights[name] * value for name, value in named.items()]).sum()
        return {"reconstruction": total, **named}
