"""Reconstruction losses of the spectral codec.

Log-mel and log-magnitude distances at several resolutions (Yamamoto et al., arXiv 1910.11480;
Défossez et al., arXiv 2210.13438), and a distance of compressed complex spectra (Braun & Tashev,
arXiv 2009.12286) that ties phases where they can be coded.

Shape legend: B batch, T samples, F frequencies, M spectra.
"""

from __future__ import annotations

import torch
import torchaudio
from jaxtyping import Complex, Float
from torch import Tensor, nn

from segue.core.interfaces import Wave
from segue.plugins.tokenizers.spectral_codec.config import SpectralLossWeights
from segue.plugins.tokenizers.spectral_codec.network import COMPRESSION

# (samples of the window, mel bands). Hops are a quarter of the window.
RESOLUTIONS = ((256, 32), (512, 64), (1024, 80), (2048, 96))
# A little above the noise of a 16-bit file: nothing is gained by matching what is below.
MAGNITUDE_FLOOR = 1e-5
POWER_FLOOR = 1e-12
SILENT_POWER = 1e-5  # of a wave at -50 dB


class ReconstructionLoss(nn.Module):
    """Compute the weighted sum of all reconstruction losses, and each by itself.

    Args:
        sample_rate: Hz.
        weights: of the losses.
    """

    def __init__(self, sample_rate: int, weights: SpectralLossWeights) -> None:
        super().__init__()
        self.weights = weights
        resolutions = (Resolution(sample_rate, size, mels) for size, mels in RESOLUTIONS)
        self.resolutions = nn.ModuleList(resolutions)

    def forward(self, wave: Wave, target: Wave) -> dict[str, Tensor]:
        """Return the losses by name; both waves must be zero beyond each row's length."""
        parts = [resolution(wave, target) for resolution in self.resolutions]
        named = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        named["waveform"] = _relative_error(wave, target)
        weights = self.weights.model_dump()
        total = torch.stack([weights[name] * value for name, value in named.items()]).sum()
        return {"reconstruction": total, **named}


class Resolution(nn.Module):
    """Compute the losses at one window size.

    Args:
        sample_rate: Hz.
        window: samples of the window.
        num_mels: mel bands.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, sample_rate: int, window: int, num_mels: int) -> None:
        super().__init__()
        self.size, self.hop = window, window // 4
        filters = torchaudio.functional.melscale_fbanks(
            window // 2 + 1, 0.0, sample_rate / 2, num_mels, sample_rate, norm=None, mel_scale="htk"
        )
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, wave: Wave, target: Wave) -> dict[str, Tensor]:
        with torch.no_grad():
            real = self._spectrum(target)
            real_size = _magnitude(real)
        made = self._spectrum(wave)
        made_size = _magnitude(made)
        made_mel = made_size.transpose(1, 2) @ self.filters
        real_mel = real_size.transpose(1, 2) @ self.filters
        # Over the whole batch, so that a silent crop does not divide by zero.
        energy = real_size.norm() + 1e-3 * real_size.numel() ** 0.5
        losses = {
            "mel": (_log(made_mel) - _log(real_mel)).abs().mean(),
            "log_magnitude": (_log(made_size) - _log(real_size)).abs().mean(),
            "convergence": (made_size - real_size).norm() / energy,
        }
        exponent = COMPRESSION - 1.0
        gap = torch.view_as_real(made * made_size.pow(exponent) - real * real_size.pow(exponent))
        return losses | {"complex_stft": gap.abs().mean()}

    def _spectrum(self, wave: Wave) -> Complex[Tensor, "B F M"]:
        spectrum = torch.stft(
            wave, self.size, self.hop, window=self.window, pad_mode="constant", return_complex=True
        )
        return spectrum * (2.0 / self.size)


def _relative_error(wave: Wave, target: Wave) -> Tensor:
    """Return the error's share of the amplitude, averaged over rows; silence counts little."""
    error = (wave - target).square().mean(1) / (target.square().mean(1) + SILENT_POWER)
    return (error + 1e-4).sqrt().mean()  # the slope of a root has no bound at zero


def _magnitude(spectrum: Complex[Tensor, "B F M"]) -> Float[Tensor, "B F M"]:
    # Not ``abs``, whose gradient is undefined at zero.
    return (spectrum.real.square() + spectrum.imag.square() + POWER_FLOOR).sqrt()


def _log(magnitude: Tensor) -> Tensor:
    return torch.log(magnitude + MAGNITUDE_FLOOR)
