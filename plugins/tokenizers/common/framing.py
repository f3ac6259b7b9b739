"""Short-time Fourier transforms whose frame n is centred on samples n * hop .. (n + 1) * hop - 1.

N frames stand for exactly ``N * hop`` samples and no edge is reflected, so that a row of a batch
depends on nothing but its own samples.
"""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float, Int64
from torch import Tensor, nn


class Framing(nn.Module):
    """Waves to spectra and back.

    Args:
        hop: samples per frame.
        window: samples of the Hann window and of the transform; even, as is the hop.
    """

    window: Tensor

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
        padded = nn.functional.pad(wave, (self.margin, self.margin + missing))
        pieces = padded.unfold(1, self.size, self.hop)
        scale = 2.0 / self.size  # a full-scale sine has a magnitude of about 0.5
        spectra: Tensor = torch.fft.rfft(pieces * self.window)
        return spectra * scale

    def synthesise(
        self, spectra: Complex[Tensor, "B N F"], mask: Float[Tensor, "B N"]
    ) -> Float[Tensor, "B T"]:
        """The wave whose spectra come closest: windowed overlap-add, normalised by the windows
        of the frames that each row has.

        Returns:
            ``[B, N * hop]``, zero beyond a row's last frame.
        """
        pieces = torch.fft.irfft(spectra, n=self.size) * (self.window * self.size / 2.0)
        wave = self._overlap_add(pieces * mask[..., None])
        weight = self._overlap_add(self.window.square() * mask[..., None])
        valid = mask.repeat_interleave(self.hop, dim=1)
        return wave / weight.clamp(min=1e-3) * valid

    def _overlap_add(self, pieces: Float[Tensor, "B N W"]) -> Float[Tensor, "B T"]:
        """Sum pieces ``hop`` samples apart and cut the margins off."""
        length = (pieces.shape[1] - 1) * self.hop + self.size
        columns = pieces.transpose(1, 2)
        summed = nn.functional.fold(columns, (1, length), (1, self.size), stride=(1, self.hop))[
            :, 0, 0
        ]
        return summed[:, self.margin : self.margin + pieces.shape[1] * self.hop]


def with_edges(
    x: Float[Tensor, "B M D"], valid: Int64[Tensor, "B"], size: int, reach: int
) -> Float[Tensor, "B S D"]:
    """``size`` frames of each row and ``reach`` more on both sides, where a row's first and last
    valid frames are repeated: audio that was cut off looks as if it went on.

    Args:
        x: frames.
        valid: frames of each row that hold audio.
        size: frames wanted.
        reach: further frames on either side.
    """
    places = torch.arange(-reach, size + reach, device=x.device).expand(x.shape[0], -1)
    last = (valid - 1).clamp(min=0)[:, None]
    places = torch.minimum(places.clamp(min=0), last)
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[2]))
