"""Short-time Fourier analysis and synthesis in which frame n is centred on its own samples.

Frame n looks at ``window`` samples around samples ``n * hop .. (n + 1) * hop - 1``, so that N
frames stand for exactly ``N * hop`` samples and no edge is reflected: a row depends on nothing but
its own samples.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor, nn

# The exponent that brings loud and soft partials within reach of one another, as is customary in
# speech enhancement (e.g. Braun & Tashev, arXiv 2009.12286).
COMPRESSION = 0.3
FLOOR = 1e-5


class Framing(nn.Module):
    """Waves to spectra and back.

    Args:
        hop: samples per frame.
        window: samples of the Hann window and of the transform.
    """

    def __init__(self, hop: int, window: int) -> None:
        super().__init__()
        self.hop, self.size = hop, window
        self.margin = (window - hop) // 2
        self.register_buffer("window", torch.hann_window(window), persistent=False)

    @property
    def reach(self) -> int:
        """Frames to either side that contribute to a frame's samples."""
        return -(-self.margin // self.hop)

    def analyse(self, wave: Float[Tensor, "B T"]) -> Complex[Tensor, "B N F"]:
        """Spectra of a wave, zero beyond each row's length, of ``ceil(T / hop)`` frames."""
        frames = -(-wave.shape[1] // self.hop)
        missing = frames * self.hop - wave.shape[1]
        padded = F.pad(wave, (self.margin, self.margin + missing))
        pieces = padded.unfold(1, self.size, self.hop)
        scale = 2.0 / self.size  # a full-scale sine has a magnitude of about 0.5
        return cast(Tensor, torch.fft.rfft(pieces * self.window)) * scale

    def synthesise(
        self, spectra: Complex[Tensor, "B N F"], mask: Float[Tensor, "B N"]
    ) -> Float[Tensor, "B T"]:
        """The wave whose spectra come closest: windowed overlap-add, normalised by the windows
        of the frames that each row has.

        Returns:
            ``[B, N * hop]``, zero beyond a row's last frame.
        """
        window = cast(Tensor, self.window)
        pieces = torch.fft.irfft(spectra, n=self.size) * (window * self.size / 2.0)
        wave = self._overlap_add(pieces * mask[..., None])
        weight = self._overlap_add(window.square() * mask[..., None])
        valid = mask.repeat_interleave(self.hop, dim=1)
        return wave / weight.clamp(min=1e-3) * valid

    def _overlap_add(self, pieces: Float[Tensor, "B N W"]) -> Float[Tensor, "B T"]:
        """Sum pieces ``hop`` samples apart and cut the margins off."""
        length = (pieces.shape[1] - 1) * self.hop + self.size
        columns = pieces.transpose(1, 2)
        summed = F.fold(columns, (1, length), (1, self.size), stride=(1, self.hop))[:, 0, 0]
        return summed[:, self.margin : self.margin + pieces.shape[1] * self.hop]


def features(spectra: Complex[Tensor, "B N F"]) -> Float[Tensor, "B N 3F"]:
    """What the encoder sees: log magnitude, and the compressed spectrum's two parts."""
    magnitude = spectra.abs()
    compressed = spectra * (magnitude + FLOOR).pow(COMPRESSION - 1.0)
    log_magnitude = torch.log(magnitude + FLOOR) / 4.0 + 2.0  # roughly unit variance on speech
    return torch.cat([log_magnitude, compressed.real * 4.0, compressed.imag * 4.0], dim=2)
