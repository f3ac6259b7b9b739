"""Read sound files whose headers lie about their length, or whose ends are missing. No torch.

libsndfile believes headers. A FLAC file from a pipe states no length; an MP3 file of variable rate
without a Xing header is guessed wrong; a cut file promises more than it holds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NoReturn, cast

import numpy
import soundfile

from segue.core.errors import AudioError
from segue.core.memory import shortage
from segue.core.spec import LOUDEST, MAX_SAMPLE_RATE, MIN_SAMPLE_RATE
from segue.sound.headers import Corrected, Correction, corrected
from segue.sound.mpeg import MpegFrames, find_frames
from segue.sound.quiet import quiet

UNKNOWN_LENGTH = 1 << 62  # as many frames or more: the header states no length
BLOCK = 1 << 14  # frames decoded at once
MPEG_SECONDS = 60  # of an MP3 file that are cut out at once
LAST_PAGE_SECONDS = 60  # of an Ogg file; no page lasts longer
CHECKED = 1 << 24  # samples of all channels: so many more are read only if memory suffices
COPIES = 3  # of the samples, while they are joined and mixed
LEAST_MISSING = 0.5  # seconds by which a header is wrong before it matters
#: Formats in which every place can be found exactly, whatever was read before.
PLAIN = frozenset({"WAV", "WAVEX", "AIFF", "AU", "W64", "RF64", "CAF", "NIST", "SVX", "VOC"})

Samples = numpy.ndarray[Any, numpy.dtype[numpy.float32]]


class _SoundFile(soundfile.SoundFile):  # type: ignore[misc]  # it has no types
    """Read on where the last read ended: soundfile would seek there, and lossy formats would not
    find the place exactly."""

    def __init__(self, source: str | bytes | IO[bytes]) -> None:
        with quiet():
            super().__init__(source)

    def read(self, *arguments: Any, **options: Any) -> Samples:
        with quiet():
            found: Samples = super().read(*arguments, **options)
        return found

    def seekable(self) -> bool:
        return False

    @property
    def can_seek(self) -> bool:
        """Return whether libsndfile finds places in it: not so in GSM 6.10, for example."""
        return bool(super().seekable())


class SoundReader:
    """Read an open sound file from any place on, as far as it really goes.

    What is read depends on the file and the place alone, not on what was read before.

    Args:
        source: path, or a binary file that can be searched; it stays open.
        most_samples: count no more of them, in all channels, where only decoding shows the length.

    Attributes:
        rate: samples per second.
        channels: their number.
        promised: frames by the header; None if it states no length, infinite if unknown frames are
            missing.
        length: frames that there are. A cut file may end earlier: see ``measure``.

    Raises:
        soundfile.LibsndfileError: here or later, if it is no audio.
        AudioError: here, if its sample rate is absurd; later, if what is read does not fit into
            memory.
    """

    def __init__(
        self, source: str | bytes | Path | IO[bytes], most_samples: int | None = None
    ) -> None:
        self._source = os.fspath(source) if isinstance(source, Path) else source
        self._name = self._source if isinstance(self._source, (str, bytes)) else "audio"
        try:
            self._source, promise = corrected(self._source)
        except AudioError as error:
            self._refuse(error.problem, error.fix)
        self._mpeg: MpegFrames | None = None
        try:
            self._file = self._opened()
            again = False
        except soundfile.LibsndfileError:  # of an MP3 file, too, that states a single frame
            again = True
        if again or self._file.subtype == "MPEG_LAYER_III":
            self._mpeg = self._mpeg_frames()
        if self._mpeg is not None and self._mpeg.correction is not None:
            if not again:
                self._file.close()
            correction, again = Correction(*self._mpeg.correction), True
            self._source = cast("IO[bytes]", Corrected(self._source, correction))
        if again:
            self._file = self._opened()
        self.rate: int = self._file.samplerate
        self.channels: int = self._file.channels
        if not MIN_SAMPLE_RATE <= self.rate <= MAX_SAMPLE_RATE:
            # Resampling a megabyte at 1 Hz would make gigabytes.
            self._refuse(
                f"has a sample rate of {self.rate} Hz",
                f"correct its header: {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz can be read",
            )
        self._most = UNKNOWN_LENGTH
        if most_samples is not None:
            self._most = most_samples // self.channels + 1
        self.promised: float | None = self._file.frames * promise
        self.length: int = self._file.frames
        if self._mpeg is not None and self._mpeg.others > LEAST_MISSING:
            self._refuse(
                "changes its sample rate or number of channels, where decoders stop",
                "make one stream of it: ffmpeg -i FILE FILE.flac",
            )
        if self.length >= UNKNOWN_LENGTH:
            self.promised = None
            self.measure()
        elif self._mpeg is not None:
            there = self._mpeg.samples - self._mpeg.delay
            stops_early = there > self.length + LEAST_MISSING * self.rate
            self.promised = self.length if self._mpeg.has_table and not stops_early else None
            self.length = there if stops_early else min(self.length, there)

    def __enter__(self) -> SoundReader:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        if isinstance(self._source, Corrected):
            self._source.close()

    def read(self, first: int, count: int) -> Samples:
        """Return frames ``[n, C]`` from ``first`` on: ``count``, or what is left."""
        data = self._read(first, count)
        # Integers and codes stand for sound within full scale; damaged codes may not.
        if self._file.subtype not in ("FLOAT", "DOUBLE") and (peak := peak_of(data)) > LOUDEST:
            self._refuse(
                f"is damaged: it decodes to samples of {peak:.2g}, where full scale is 1",
                "restore it from its source",
            )
        return data

    def _read(self, first: int, count: int) -> Samples:
        self._check_memory(min(first + count, self.length) - first)
        stop = min(first + count, self.length)
        if self._mpeg is not None and (first or stop > self._file.frames):
            step = MPEG_SECONDS * self.rate
            pieces = [self._read_mpeg(at, min(step, stop - at)) for at in range(first, stop, step)]
            return _joined(pieces, self.channels)
        if not self._file.can_seek or (self._file.tell() and self._file.format not in PLAIN):
            self._reopen()  # a damaged file may go on otherwise
        begin = first if self._file.can_seek else 0
        if self._file.format == "OGG":  # libsndfile does not find its place on the last page
            begin = min(first, max(0, self.length - LAST_PAGE_SECONDS * self.rate))
        return _decoded(self._file, begin, stop - begin)[first - begin :]

    def measure(self) -> None:
        """Find the true length by decoding all, in little memory."""
        with self._opened() as file:
            self.length = sum(len(block) for block in _blocks(file, self._most))
        self._reopen()

    def _check_memory(self, count: int) -> None:
        """Refuse to read more than fits: a megabyte of silence can last for days."""
        samples = count * self.channels
        problem = shortage(samples * COPIES * 4) if samples > CHECKED else None
        if problem is None:
            return
        try:
            with self._opened() as file:  # one that fails to seek reads no more
                file.seek(self.length - 1)
                true = len(file.read(1)) == 1
        except soundfile.LibsndfileError:
            true = False
        self._reopen()
        if true or self._mpeg is not None:
            hours = count / self.rate / 3600
            self._refuse(f"lasts {hours:,.1f} h and {problem}", "cut it into shorter files")
        self.measure()  # its header lies

    def _refuse(self, problem: str, fix: str) -> NoReturn:
        raise AudioError(os.fsdecode(self._name), problem, fix)

    def _reopen(self) -> None:
        self._file.close()
        self._file = self._opened()

    def _opened(self) -> _SoundFile:
        if not isinstance(self._source, (str, bytes)):
            self._source.seek(0)
        return _SoundFile(self._source)

    def _mpeg_frames(self) -> MpegFrames | None:
        if isinstance(self._source, (str, bytes)):
            status = os.stat(self._source)  # noqa: PTH116  # names may be any bytes
            return _frames_of(self._source, status.st_size, status.st_mtime_ns)
        with self._bytes() as file:
            return find_frames(file)

    @contextmanager
    def _bytes(self) -> Iterator[IO[bytes]]:
        """Open the file for others than libsndfile, which goes on where it was in an open one."""
        if isinstance(self._source, (str, bytes)):
            with open(self._source, "rb") as file:  # noqa: PTH123
                yield file
        else:
            place = self._source.tell()
            yield self._source
            self._source.seek(place)

    def _read_mpeg(self, first: int, count: int) -> Samples:
        assert self._mpeg is not None
        with self._bytes() as file:
            excerpt, skipped = self._mpeg.excerpt(file, first, count)
        with _SoundFile(excerpt) as cut:
            return _decoded(cut, 0, skipped + count)[skipped:]


def peak_of(data: Samples) -> float:
    """Return the largest magnitude; 0 if there is no sample."""
    return max(float(data.max()), -float(data.min())) if data.size else 0.0


@lru_cache(maxsize=256)
def _frames_of(path: str | bytes, size: int, changed: int) -> MpegFrames | None:
    with open(path, "rb") as file:  # noqa: PTH123
        return find_frames(file)


def _decoded(file: _SoundFile, first: int, count: int) -> Samples:
    """Return frames ``[n, C]`` from ``first`` on: ``count``, or what is left."""
    try:
        if file.can_seek and file.tell() != first:
            file.seek(first)
    except soundfile.LibsndfileError:  # it lies beyond the end
        count = 0
    return _joined(list(_blocks(file, count)), file.channels)


def _blocks(file: soundfile.SoundFile, count: int) -> Iterator[Samples]:
    while count > 0:
        block = numpy.full((min(BLOCK, count), file.channels), numpy.nan, numpy.float32)
        try:
            found = len(file.read(out=block))
        except soundfile.LibsndfileError:
            # The data end where the header promises more. What was decoded before is in the block.
            found = int(numpy.isfinite(block[:, 0]).cumprod().sum())
            count = 0
        if found:
            yield block[:found]
        count = count - found if found else 0


def _joined(blocks: list[Samples], channels: int) -> Samples:
    return numpy.concatenate(blocks) if blocks else numpy.zeros((0, channels), numpy.float32)
