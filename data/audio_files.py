"""Read the audio of a recording, wherever its bytes are: whole, or only the part that is needed."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import soundfile
import torch
from jaxtyping import Float, Int16
from torch import Tensor

from segue.core.audio import Audio, resample, to_mono
from segue.core.errors import AudioError
from segue.core.sound_files import read_frames, true_length
from segue.data.places import PLACE_ERRORS, Section, is_url, open_bytes, read_range
from segue.data.recordings import WHOLE_FILE, Recording

READ_WHOLE = 1 << 24  # bytes: up to here a tar's member is fetched by one read
INEXACT = frozenset(
    {"OGG", "MP3", "MPEG"}
)  # where libsndfile lands a little off the place it seeks
MARGIN_SECONDS = 0.05  # of context on both sides where a part is resampled; the filter is shorter


class OpenRecording:
    """Read an open recording's samples from any place on.

    Attributes:
        rate: samples per second of the file.
        length: samples of the recording, at that rate.
    """

    def __init__(self, file: Any, recording: Recording, source: Any) -> None:
        self._file, self._recording = file, recording
        self.rate: int = file.samplerate
        self._decoded: numpy.ndarray[Any, Any] | None = None
        self._first = 0
        length, _ = true_length(file, source, recording.place)
        if length is None:  # decode it all, once: nothing else shows where it ends
            self._decoded = read_frames(file)
            length = len(self._decoded)
        self.length = length
        if recording.start is not None:
            self._first = min(round(recording.start * self.rate), self.length)
            wanted = round(recording.seconds * self.rate)
            self.length = max(0, min(self.length - self._first, wanted))

    def read(self, first: int, count: int) -> Float[Tensor, "T"]:
        """Return samples ``first .. first + count - 1`` as mono audio, as far as there are any.

        Raises:
            AudioError: if they hold NaN.
        """
        count = max(0, min(count, self.length - first))
        place = self._recording.place
        data = self._samples(self._first + first, count)
        if not numpy.isfinite(data).all():
            raise AudioError(place, "holds NaN or infinite samples", "repair the file")
        channel = self._recording.channel
        if channel is not None and data.shape[1] > 1:
            data = data[:, channel : channel + 1]
            if not data.shape[1]:
                raise AudioError(
                    place, f"has no channel {channel}", "correct the list of recordings"
                )
        return to_mono(torch.from_numpy(data.T.copy()), place)[0]

    def _samples(self, first: int, count: int) -> numpy.ndarray[Any, Any]:
        """Return ``[count, C]`` samples; a format without exact seeking is decoded whole, once."""
        if self._decoded is None and self._file.format in INEXACT:
            self._decoded = read_frames(self._file)
        if self._decoded is not None:
            return self._decoded[first : first + count]
        return read_frames(self._file, first, count)

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
        """Return the number of samples of the recording at another rate."""
        return math.ceil(self.length * rate / self.rate)


@contextmanager
def open_recording(recording: Recording) -> Iterator[OpenRecording]:
    """Open a recording; only its header is read.

    Raises:
        AudioError: here or in the block, if it is missing, out of reach, empty or no audio.
    """
    place = recording.place
    try:
        with _bytes_of(recording) as raw, soundfile.SoundFile(raw) as file:
            opened = OpenRecording(file, recording, raw)
            if not opened.length:
                raise AudioError(place, "holds no sample", "name a file that holds audio")
            yield opened
    except FileNotFoundError as error:
        raise AudioError(place, "does not exist", "check the path") from error
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
        raise AudioError(place, problem, "check the path") from error
    except (soundfile.LibsndfileError, *PLACE_ERRORS, MemoryError, TypeError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise AudioError(
            place,
            f"cannot be read as audio ({lines[-1].rstrip('.')})",
            "use a format that libsndfile reads, such as WAV, FLAC, Ogg, Opus or MP3",
        ) from error


@contextmanager
def _bytes_of(recording: Recording) -> Iterator[Any]:
    size = recording.size
    if size != WHOLE_FILE and size <= READ_WHOLE:
        data = read_range(recording.where, recording.offset, size)
        _check_size(len(data), recording.place)
        yield io.BytesIO(data)
        return
    if size == WHOLE_FILE and not is_url(recording.where):
        name = os.fsencode(recording.where)
        _check_size(Path(recording.where).stat().st_size, recording.place)
        if Path(recording.where).is_dir():
            raise AudioError(recording.place, "is a directory", "name one audio file")
        yield name if os.name == "posix" else recording.where  # libsndfile opens it by itself
        return
    with open_bytes(recording.where) as file:
        if size != WHOLE_FILE:
            yield Section(file, recording.offset, size)
            return
        _check_size(file.seek(0, io.SEEK_END), recording.place)
        file.seek(0)
        yield file


def _check_size(size: int, place: str) -> None:
    if size == 0:
        raise AudioError(place, "is an empty file", "name a file that holds audio")


def read_recording(recording: Recording, first_seconds: float | None = None) -> Audio:
    """Read a recording at its own sample rate.

    Args:
        first_seconds: read no more than this.

    Raises:
        AudioError: if it cannot be read.
    """
    with open_recording(recording) as opened:
        wanted = opened.length
        if first_seconds is not None:
            wanted = min(wanted, round(first_seconds * opened.rate))
        return Audio(opened.read(0, wanted), opened.rate)


def decode_recording(recording: Recording, sample_rate: int) -> Int16[Tensor, "T"]:
    """Read a recording at ``sample_rate`` as 16-bit samples ``[T]``.

    Raises:
        AudioError: if it cannot be read.
    """
    audio = read_recording(recording)
    wave = audio.wave
    if audio.sample_rate != sample_rate:
        wave = resample(wave, audio.sample_rate, sample_rate)
    return to_16_bit(wave)


def to_16_bit(wave: Float[Tensor, "T"]) -> Int16[Tensor, "T"]:
    return (wave.clamp(-1, 1) * 32767).round().to(torch.int16)


def seconds_of(recording: Recording) -> float:
    """Return the length that a recording's header states; 0 if it cannot be read."""
    try:
        with open_recording(recording) as opened:
            return opened.length / opened.rate
    except AudioError:
        return 0.0
