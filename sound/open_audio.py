"""Read parts of sound files as mono audio, at any sample rate, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy
import torch
from jaxtyping import Float
from torch import Tensor

from segue.core.audio import resample, to_mono
from segue.core.errors import AudioError
from segue.sound.opening import decoding, open_sound
from segue.sound.reader import LEAST_MISSING, SoundReader, peak_of
from segue.sound.reading import cut_off

MARGIN_SECONDS = 0.05  # of context on both sides where a part is resampled; the filter is shorter
BLOCK_SECONDS = 60  # that are read at once


class OpenAudio:
    """Read an open file's samples, or those of a stretch of it, from any place on.

    Args:
        place: its name in errors.
        start: seconds into the file; None for all of it.
        seconds: length of the stretch, where ``start`` is given; below 0 it ends with the file.
        channel: the one to take; None mixes all.
        loudest: refuse samples beyond it, of full scale 1.

    Attributes:
        rate: samples per second of the file.
        length: samples of the stretch, at that rate.
    """

    def __init__(
        self,
        sound: SoundReader,
        place: str,
        start: float | None = None,
        seconds: float = 0.0,
        channel: int | None = None,
        loudest: float = math.inf,
    ) -> None:
        self._sound, self._place, self._channel = sound, place, channel
        self._loudest = loudest
        self.rate, self.length, self._first = sound.rate, sound.length, 0
        if start is not None:
            self._first = min(round(start * self.rate), sound.length)
            wanted = round(seconds * self.rate) if seconds >= 0 else sound.length
            self.length = max(0, min(sound.length - self._first, wanted))

    @property
    def promised(self) -> float:
        """Return the seconds that the whole file should last by its header, if it is cut off."""
        promised, there = self._sound.promised, self._sound.length
        cut = promised is not None and there < promised - LEAST_MISSING * self.rate
        return (promised if cut and promised else there) / self.rate

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what a user should know of the file."""
        notes = []
        if self.promised > self._sound.length / self.rate:
            notes.append(cut_off(self._sound.length / self.rate, self.promised))
        if self._sound.channels > 1 and self._channel is None:
            notes.append(f"mixed {self._sound.channels} channels to mono")
        return tuple(notes)

    def read(self, first: int, count: int) -> Float[Tensor, "T"]:
        """Return samples ``first .. first + count - 1`` as mono audio, as far as there are any.

        Raises:
            AudioError: if they hold NaN, or are too loud.
        """
        count = max(0, min(count, self.length - first))
        with decoding(self._place):
            data = self._sound.read(self._first + first, count)
        if not numpy.isfinite(data).all():
            raise AudioError(self._place, "holds NaN or infinite samples", "repair the file")
        if (peak := peak_of(data)) > self._loudest:
            problem = f"has samples up to {peak:.3g}, where full scale is 1"
            raise AudioError(self._place, problem, "scale it down, or repair the file")
        if self._channel is not None:
            data = data[:, self._channel : self._channel + 1]
            if not data.shape[1]:
                problem = f"has no channel {self._channel}"
                raise AudioError(self._place, problem, "correct the list of recordings")
        return to_mono(torch.from_numpy(data.T.copy()))[0]

    def read_at(self, rate: int, first: int, count: int) -> Float[Tensor, "T"]:
        """Return samples counted at another rate; nearly equal to a cut from the whole, resampled.

        Args:
            first: a multiple of ``rate``, so that the part begins on a sample of both rates.
        """
        if rate == self.rate:
            return self.read(first, count)
        unit = self.rate // math.gcd(self.rate, rate)  # source samples between common instants
        margin = math.ceil(MARGIN_SECONDS * self.rate / unit) * unit
        begin = first * self.rate // rate
        lead = min(margin, begin // unit * unit)
        wanted = math.ceil(count * self.rate / rate) + lead + margin
        wave = resample(self.read(begin - lead, wanted), self.rate, rate)
        skipped = lead * rate // self.rate
        left = self.length_at(rate) - first
        return wave[skipped : skipped + max(0, min(count, left))]

    def length_at(self, rate: int) -> int:
        """Return the number of samples of the stretch at another rate."""
        return math.ceil(self.length * rate / self.rate)

    def blocks_at(self, rate: int, seconds: int = BLOCK_SECONDS) -> Iterator[Float[Tensor, "T"]]:
        """Yield all samples at a rate, ``seconds`` at a time, to where the file ends."""
        for first in range(0, self.length_at(rate), seconds * rate):
            block = self.read_at(rate, first, seconds * rate)
            if not block.numel():
                return
            yield block


@contextmanager
def open_audio(path: Path, place: str | None = None) -> Iterator[OpenAudio]:
    """Open a file that libsndfile knows, or raise ``AudioError``, here or in the block."""
    place = place or str(path)
    with open_sound(path, place) as sound:
        with decoding(place):
            if not len(sound.read(sound.length - 1, 1)):
                sound.measure()  # it is cut off
        yield OpenAudio(sound, place)
