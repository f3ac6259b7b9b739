"""Turn waves into spectra and back, and spectra into frames; encode long audio in windows.

Shape legend: B batch, T samples, N frames or spectra, F frequencies, D features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Complex, Float, Int64
from torch import Tensor, nn

from segue.core.interfaces import Wave

PITCH_CLASSES = 12


class Framing(nn.Module):
    """Transform waves to spectra and back.

    Frame n is centred on samples ``n * hop .. (n + 1) * hop - 1``, so that N frames stand for
    exactly ``N * hop`` samples. Edges are padded with zeros, not reflected, so
    that a row of a batch depends on its own samples only.

    Args:
        hop: samples per frame, even.
        window: samples of the Hann window and of the transform, even.
    """

    window: Tensor

    def __init__(self, hop: int, window: int) -> None:
        super().__init__()
        self.hop, self.size = hop, window
        self.margin = (window - hop) // 2
        self.register_buffer("window", torch.hann_window(window), persistent=False)

    @property
    def reach(self) -> int:
        """Return how many frames on either side contribute to a frame's samples."""
        return -(-self.margin // self.hop)

    def analyse(self, wave: Wave) -> Complex[Tensor, "B N F"]:
        """Return ``ceil(T / hop)`` spectra of a wave that is zero beyond each row's length."""
        missing = -wave.shape[1] % self.hop
        padded = nn.functional.pad(wave, (self.margin, self.margin + missing))
        # A view: no sample is copied for the overlap.
        pieces = padded.unfold(1, self.size, self.hop)
        scale = 2.0 / self.size  # a full-scale sine has a magnitude of about 0.5
        return torch.fft.rfft(pieces * self.window) * scale

    def synthesise(self, spectra: Complex[Tensor, "B N F"], mask: Float[Tensor, "B N"]) -> Wave:
        """Return the wave whose spectra are closest, by windowed overlap-add.

        Returns:
            ``[B, N * hop]``, zero beyond a row's last frame.
        """
        pieces = torch.fft.irfft(spectra, n=self.size) * (self.window * self.size / 2.0)
        wave = self._overlap_add(pieces * mask[..., None])
        # Divide by the sum of the windows that each sample lies in, fewer at a row's ends.
        weight = self._overlap_add(self.window.square() * mask[..., None])
        valid = mask.repeat_interleave(self.hop, dim=1)
        return wave / weight.clamp(min=1e-3) * valid

    def _overlap_add(self, pieces: Float[Tensor, "B N W"]) -> Wave:
        length = (pieces.shape[1] - 1) * self.hop + self.size
        summed = nn.functional.fold(
            pieces.transpose(1, 2), (1, length), (1, self.size), stride=(1, self.hop)
        )[:, 0, 0]
        return summed[:, self.margin : self.margin + pieces.shape[1] * self.hop]


def with_edges(
    x: Float[Tensor, "B M D"], valid: Int64[Tensor, "B"], size: int, reach: int
) -> Float[Tensor, "B S D"]:
    """Repeat the first and last valid frame of each row beyond its ends.

    Audio that was cut off then looks as if it went on.

    Args:
        size: frames to return for each row.
        reach: further frames on either side.
    """
    places = torch.arange(-reach, size + reach, device=x.device).expand(x.shape[0], -1)
    last = (valid - 1).clamp(min=0)[:, None]
    places = torch.minimum(places.clamp(min=0), last)
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[2]))


def mean_and_slope(
    x: Float[Tensor, "B M D"],
    valid: Int64[Tensor, "B"],
    num_tokens: int,
    per_token: int,
    reach: int,
) -> Float[Tensor, "B N E"]:
    """Return mean and slope of each feature over a token's spectra, ``E = 2 D``.

    Args:
        valid: number of valid spectra of each row.
        reach: spectra on either side of a token over which slopes are taken as well.
    """
    padded = with_edges(x, valid, num_tokens * per_token, reach)
    around = padded.unfold(1, per_token + 2 * reach, per_token)  # [B, N, D, W]
    mean = around[..., reach : reach + per_token].mean(-1)
    offsets = torch.arange(around.shape[-1], device=x.device, dtype=x.dtype)
    offsets = offsets - offsets.mean()
    slope = (around * offsets).sum(-1) / offsets.square().sum()
    return torch.cat([mean, slope], dim=2)


def note_filters(
    notes: Int64[Tensor, "M"] | Float[Tensor, "M"], sample_rate: int, window: int
) -> Float[Tensor, "F M"]:
    """Return bell curves around each note's frequency, at least half a semitone or one bin wide.

    Args:
        notes: MIDI numbers, whole or between two.
        window: samples of the transform; ``F = window / 2 + 1``.
    """
    bin_width = sample_rate / window
    bins = torch.arange(window // 2 + 1, dtype=torch.float64) * bin_width
    frequencies = 440.0 * 2.0 ** ((notes.double() - 69.0) / 12.0)
    widths = (frequencies * (2.0 ** (1.0 / 48.0) - 1.0)).clamp(min=0.5 * bin_width)
    filters = torch.exp(-0.5 * ((bins[:, None] - frequencies) / widths).square())
    return filters * (frequencies < sample_rate / 2)


Encode = Callable[[Float[Tensor, "T"]], Float[Tensor, "N D"]]


def in_windows(
    encode: Encode, wave: Float[Tensor, "T"], frame_size: int, window: int, margin: int
) -> Float[Tensor, "N D"]:
    """Return the frames of one recording, encoded in overlapping windows if it is long.

    Args:
        encode: returns ``ceil(T / frame_size)`` frames.
        window: most frames to encode at once; more than two margins.
        margin: frames to drop at a side where another window continues.
    """
    total = -(-wave.shape[0] // frame_size)
    if total <= window:
        return encode(wave)
    pieces = []
    # Every window is whole; the last one begins early enough to be so.
    for first in range(0, total - 2 * margin, window - 2 * margin):
        # So all windows have one shape, which a compiled or pretrained network likes best.
        start = min(first, total - window)
        stop = min(start + window, total)
        found = encode(wave[start * frame_size : stop * frame_size])
        kept_from = 0 if first == 0 else first + margin - start
        kept_to = stop - start if stop == total else window - margin
        pieces.append(found[kept_from:kept_to])
    return torch.cat(pieces)
