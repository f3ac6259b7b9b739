"""A spread-spectrum watermark: a key decides which bands are a little louder at which moments.

The middle of the spectrum is divided into narrow bands, and time into pairs of short blocks. In
each pair and band one block is raised and the other lowered, by a fraction of its magnitude; which
one, a keyed pattern says that repeats after some seconds. A reader compares the blocks of each pair
and correlates the differences with the pattern (patchwork, Bender et al., IBM Systems Journal 35,
1996; Kirovski and Malvar, IEEE Trans. Signal Processing 51, 2003).
"""

from __future__ import annotations

import hashlib
import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from segue.core.audio import resample

RATE, FFT, HOP = 16_000, 512, 128
LOWEST, WIDTH, BANDS = 13, 2, 51  # bins of 31 Hz: 51 bands of two, from 0.4 to 3.6 kHz
HIGHEST = LOWEST + WIDTH * BANDS
BLOCK, PAIRS = 6, 16  # frames of a block; pairs of blocks before the pattern repeats
PERIOD = 2 * BLOCK * PAIRS  # frames: 1.5 s
STRENGTH = 0.2  # of the logarithm of a magnitude: 1.7 dB
FLOOR = 1e-9  # of the loudest power
OUTLIER = 1.0  # differences count up to this many times their median


class Watermark:
    """Mark audio, and look for the mark, with one key: any text."""

    def __init__(self, key: str) -> None:
        size = BANDS * PAIRS
        bits = hashlib.shake_256(key.encode()).digest(math.ceil(size / 8))
        signs = [2 * (bits[i // 8] >> i % 8 & 1) - 1 for i in range(size)]
        self._signs = torch.tensor(signs, dtype=torch.float32).reshape(BANDS, PAIRS)
        self._window = torch.hann_window(FFT)

    def mark(
        self, wave: Float[Tensor, "T"], sample_rate: int, start: int = 0
    ) -> Float[Tensor, "T"]:
        """Return audio with the mark; only what is added goes through resampling.

        Args:
            start: samples before this piece, so that pieces of a stream carry on one pattern.
        """
        spectrum = self._spectrum(wave, sample_rate)
        frames = torch.arange(spectrum.shape[1]) + round(start * RATE / sample_rate / HOP)
        block = frames // BLOCK % (2 * PAIRS)
        raised = self._signs[:, block // 2] * (1 - 2 * (block % 2))
        gain = (STRENGTH * raised).exp().repeat_interleave(WIDTH, 0)
        change = torch.zeros_like(spectrum)
        change[LOWEST:HIGHEST] = spectrum[LOWEST:HIGHEST] * (gain - 1)
        length = math.ceil(wave.shape[0] * RATE / sample_rate)
        added = torch.istft(change, FFT, HOP, window=self._window, length=length)
        added = resample(added, RATE, sample_rate) if sample_rate != RATE else added
        added = pad(added, (0, max(0, wave.shape[0] - added.shape[0])))[: wave.shape[0]]
        return (wave + added).clamp(-1.0, 1.0)

    def score(self, wave: Float[Tensor, "T"], sample_rate: int) -> float:
        """Return how many standard deviations the pattern stands out, at the best of all offsets.

        Over random keys, audio without the mark has a mean of 0 and a deviation of 1 at each of
        the ``PERIOD`` offsets.
        """
        power = self._spectrum(wave, sample_rate)[LOWEST:HIGHEST].abs().square()
        power = power.clamp_min(FLOOR * float(power.max()) + 1e-12)
        level = power.log().reshape(BANDS, WIDTH, -1).mean(1)
        if level.shape[1] < 2 * BLOCK:
            return 0.0
        blocks = level.unfold(1, BLOCK, 1).mean(2)
        steps = blocks[:, :-BLOCK] - blocks[:, BLOCK:]
        steps = steps - steps.mean(0)  # changes of the whole say nothing
        most = OUTLIER * float(steps.abs().median())
        steps = pad(steps.clamp(-most, most), (0, -steps.shape[1] % PERIOD))
        folded = steps.reshape(BANDS, -1, PERIOD).sum(1)
        # For each offset, the differences of the pairs that begin there.
        begins = torch.arange(PERIOD)[:, None] + 2 * BLOCK * torch.arange(PAIRS)
        pairs = folded[:, begins % PERIOD]
        matched = (pairs * self._signs[:, None]).sum((0, 2))
        return float((matched / pairs.square().sum((0, 2)).sqrt().clamp_min(1e-9)).max())

    def _spectrum(self, wave: Float[Tensor, "T"], sample_rate: int) -> Tensor:
        wave = resample(wave, sample_rate, RATE) if sample_rate != RATE else wave
        return torch.stft(wave, FFT, HOP, window=self._window, return_complex=True)
