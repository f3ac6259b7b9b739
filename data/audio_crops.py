"""Draw random crops of recordings, for parts that are trained on audio."""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property

import numpy
import torch
from torch import Tensor

from segue.core.errors import AudioError, DataError
from segue.core.interfaces import WaveBatch
from segue.core.memory import shortage
from segue.data.audio_files import decoded_blocks, from_16_bit, in_pieces, open_recording, to_16_bit
from segue.data.epochs import WHOLE, Drawn, Epochs, Share, mixed
from segue.data.recordings import Recording, as_table
from segue.sound.open_audio import OpenAudio

MOST_TRIES = 100  # recordings that cannot be read, one after the other
LEAST_PART = 2  # seconds that are read and kept at once


class AudioCrops:
    """Draw batches of random crops; batch ``step`` depends on the seed and the step alone.

    An epoch takes as many crops of a recording as are as long as it, one from each stretch of it.
    Only the parts of files that crops lie in are decoded; parts are kept in memory as 16-bit
    samples up to ``cache_bytes`` (two hours at 16 kHz take 230 MB). In place of a crop that cannot
    be read another is drawn, and its recording is listed in ``unreadable``: what was drawn before
    plays no part. A recording that could be opened before and cannot any more is an error, as other
    crops in its place would be learnt from unnoticed.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        sample_rate: int,
        crop_seconds: float,
        batch_size: int,
        seed: int,
        cache_bytes: int = 4 << 30,
    ) -> None:
        self._recordings = as_table(recordings)
        self._rate, self._batch_size, self._seed = sample_rate, batch_size, seed
        self._crop = round(crop_seconds * sample_rate)
        if problem := shortage(4 * batch_size * self._crop):
            fix = "lower training.batch_size or training.crop_seconds"
            raise DataError("a batch of crops", problem, fix)
        self._part = max(LEAST_PART, math.ceil(crop_seconds)) * sample_rate
        self._cache = PartCache(cache_bytes)
        self._lengths = numpy.zeros(len(self._recordings), numpy.int64)  # where known
        self.unreadable: dict[str, str] = {}
        self._closed: set[int] = set()  # recordings that cannot even be opened
        seconds = self._recordings.seconds
        for index in numpy.nonzero(seconds <= 0)[0]:  # no crop is drawn of it
            place = self._recordings[int(index)].place
            self.unreadable[place] = "is missing, empty or no audio"
        if self.unreadable:
            warn_of(*next(iter(self.unreadable.items())), len(self.unreadable))
        slots = numpy.ceil(seconds.clip(0) * sample_rate / self._crop).astype(numpy.int64)
        lengths = (seconds * sample_rate).clip(0, self._crop).astype(numpy.int64)
        weights = self._recordings.weight_of_each()
        self.epochs = Epochs(slots, lengths, weights, batch_size, seed)
        if not self.epochs.size:
            raise DataError("recordings", "cannot be read", self._advice())

    def batch(self, step: int, share: Share = WHOLE) -> WaveBatch:
        """Draw the crops of one step; longer recordings contribute in proportion."""
        drawn = self.epochs.rows(step, share.rows(self._batch_size))
        return WaveBatch.pad([self._row(row) for row in drawn])

    def _row(self, row: Drawn) -> Tensor:
        """Draw one crop; if its recording cannot be read, draw another in the same way."""
        for attempt in range(MOST_TRIES):
            chance = mixed(self._seed, row.turn, row.unit, row.slot, attempt)
            wave = self._crop_of(row, chance / 2**64)
            if wave is not None and wave.numel():
                return from_16_bit(wave)
            step = chance % (self.epochs.steps * self._batch_size)
            step, number = divmod(step, self._batch_size)
            (other,) = self.epochs.rows(step, (number,))
            row = Drawn(other.unit, other.slot, row.turn)
        raise DataError("recordings", "cannot be read", self._advice())

    def _advice(self) -> str:
        name, problem = next(iter(self.unreadable.items()), ("every file", "is empty"))
        return f"check {name}: {problem}"

    def _crop_of(self, row: Drawn, chance: float) -> Tensor | None:
        """Return 16-bit samples from the stretch of the recording that the slot stands for."""
        recording = self._recordings[row.unit]
        if row.unit in self._closed:
            return None
        reader = _Reader(recording)
        try:
            with reader:
                if not self._lengths[row.unit]:
                    self._lengths[row.unit] = reader.opened.length_at(self._rate)
                    warn_if_shorter(recording, reader.opened)
                length = int(self._lengths[row.unit])
                slots = math.ceil(recording.seconds * self._rate / self._crop)
                places = max(0, length - self._crop) + 1
                start = min(int((row.slot + chance) / slots * places), places - 1)
                return self._samples(row.unit, start, min(start + self._crop, length), reader)
        except AudioError as error:
            if self._lengths[row.unit] and not reader.is_open:
                raise DataError(
                    recording.place,
                    f"could be read before and cannot any more ({error.problem})",
                    "put it back and start again: training goes on from its last checkpoint",
                ) from error
            if not self.unreadable:
                warn_of(recording.place, error.problem)
            self.unreadable[recording.place] = error.problem
            if not reader.is_open:
                self._closed.add(row.unit)
            return None

    def _samples(self, unit: int, start: int, stop: int, reader: _Reader) -> Tensor:
        pieces = []
        for part in range(start // self._part, -(-stop // self._part)):
            begin = part * self._part
            wave = self._cache.get((unit, part))
            if wave is None:
                wave = to_16_bit(reader.opened.read_at(self._rate, begin, self._part))
                self._cache.put((unit, part), wave)
            pieces.append(wave[max(0, start - begin) : stop - begin])
        return torch.cat(pieces)


class _Reader(ExitStack):
    """Open a recording only when samples are needed that the cache lacks."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording, self.is_open = recording, False

    @cached_property
    def opened(self) -> OpenAudio:
        found = self.enter_context(open_recording(self._recording))
        self.is_open = True
        return found


class PartCache:
    """Keep the parts used last, up to a number of bytes."""

    def __init__(self, most_bytes: int) -> None:
        self._left = most_bytes
        self._parts: OrderedDict[tuple[int, int], Tensor] = OrderedDict()

    def get(self, key: tuple[int, int]) -> Tensor | None:
        if key in self._parts:
            self._parts.move_to_end(key)
        return self._parts.get(key)

    def put(self, key: tuple[int, int], part: Tensor) -> None:
        self._parts[key] = part
        self._left -= part.nbytes
        while self._left < 0:
            _, oldest = self._parts.popitem(last=False)
            self._left += oldest.nbytes


def whole_recordings(
    recordings: Sequence[Recording], sample_rate: int, max_seconds: float
) -> Iterator[WaveBatch]:
    """Yield each recording once, in pieces of at most ``max_seconds``: one pass, to fit k-means.

    Raises:
        DataError: if many recordings cannot be read, one after the other, or none can.
    """
    failed, size = 0, round(max_seconds * sample_rate)
    first: tuple[str, str] | None = None  # that cannot be read, and why
    for recording in recordings:
        try:
            for piece in in_pieces(decoded_blocks(recording, sample_rate), size):
                failed = 0
                wave = from_16_bit(piece)
                yield WaveBatch(wave[None], torch.tensor([wave.shape[0]]))
        except AudioError as error:
            failed += 1
            first = first or (recording.place, error.problem)
            if failed == min(MOST_TRIES, len(recordings)):
                advice = f"check {error.place}: {error.problem}"
                raise DataError("recordings", "cannot be read", advice) from error
    if first is not None:
        warn_of(*first, failed)


def warn_if_shorter(recording: Recording, opened: OpenAudio) -> None:
    """Warn of a recording that is drawn too often, as a list states a wrong length."""
    there, stated = opened.length / opened.rate, recording.seconds
    if recording.start is None and stated > 2 * there + 1:
        text = f"{recording.place} lasts {there:.1f} s, but is drawn as if it were {stated:.1f} s"
        warnings.warn(f"{text}; `segue prepare files` writes a list of true lengths", stacklevel=2)


def warn_of(place: str, problem: str, count: int = 1) -> None:
    """Warn of recordings that are left out, naming the first."""
    others = f" and {count - 1} more" if count > 1 else ""
    text = f"{place}{others} left out: {problem}; `segue prepare files` lists all such recordings"
    warnings.warn(text, stacklevel=2)
