"""SoundStream's reconstruction loss: distances of mel spectra at six resolutions.

Zeghidour et al., arXiv 2107.03312, equation 8, after Gritsenko et al., arXiv 2008.01160.

Shape legend: B batch, T samples, M spectra, F mel bands.
"""

from __future__ import annotations

import warnings

import torch
import torchaudio
from jaxtyping import Float
from torch import Tensor, nn

from segue.core.interfaces import Wave

WINDOWS = (64, 128, 256, 512, 1024, 2048)  # samples; hops are a quarter of them
NUM_MELS = 64
FLOOR = 1e-4  # of magnitudes: the noise of 16 bits lies about here
POWER_FLOOR = 1e-10  # keeps gradients of magnitudes finite at zero


class SpectralLoss(nn.Module):
    """Average ``MelDistance`` over all resolutions.

    Args:
        sample_rate: Hz.
    """

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.distances = nn.ModuleList(MelDistance(sample_rate, window) for window in WINDOWS)

    def forward(self, made: Wave, real: Wave) -> Float[Tensor, ""]:
        """Return the loss; both waves must be zero beyond each row's length."""
        return torch.stack([distance(made, real) for distance in self.distances]).mean()


class MelDistance(nn.Module):
    """Compute ``|S - S'| + a |log S - log S'|_2`` at one resolution, ``a = sqrt(window / 2)``.

    The first norm is a mean over bins and frames. The second is one norm per frame, of which the
    mean is taken, divided by the number of bins too: the ratio of the two is the paper's.

    Args:
        sample_rate: Hz.
        window: samples of the Hann window.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, sample_rate: int, window: int) -> None:
        super().__init__()
        self.size = window
        self.weight: float = (window / 2) ** 0.5 / NUM_MELS
        with warnings.catch_warnings():
            # The smallest windows have fewer bins than mel bands: some bands are empty.
            warnings.simplefilter("ignore", UserWarning)
            filters = torchaudio.functional.melscale_fbanks(
                window // 2 + 1, 0.0, sample_rate / 2, NUM_MELS, sample_rate, None, "htk"
            )
        shape = torch.hann_window(window)
        shape = shape / shape.square().sum().sqrt()
        self.register_buffer("window", shape, persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, made: Wave, real: Wave) -> Float[Tensor, ""]:
        made_mel = self._mel(made)
        with torch.no_grad():
            real_mel = self._mel(real)
        logs = (made_mel + FLOOR).log() - (real_mel + FLOOR).log()
        # The gradient of a norm is undefined where both spectra are equal.
        norms: Tensor = (logs.square().sum(dim=2) + POWER_FLOOR).sqrt()
        return (made_mel - real_mel).abs().mean() + norms.mean() * self.weight

    def _mel(self, wave: Wave) -> Float[Tensor, "B M F"]:
        spectrum = torch.stft(
            wave, self.size, self.size // 4, window=self.window, pad_mode="constant",
            return_complex=True,
        )  # fmt: skip
        power = spectrum.real.square() + spectrum.imag.square()
        magnitude: Tensor = (power + POWER_FLOOR).sqrt()
        return magnitude.transpose(1, 2) @ self.filters
