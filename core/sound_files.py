"""Read sound files whose headers lie about their length, or whose ends are missing. No torch.

libsndfile believes headers. A FLAC file from a pipe states no length; an MP3 file of variable rate
without a Xing header is guessed wrong; a cut file promises more than it holds.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import numpy
import soundfile

from segue.core.errors import AudioError

UNKNOWN_LENGTH = 1 << 62  # as many frames or more: the header states no length
BLOCK = 1 << 14  # frames decoded at once
LEAST_MISSING = 0.5  # seconds that a wrong length must hide before a file is refused

# Tables of MPEG audio, layer III (ISO 11172-3, 13818-3): kbit/s and samples per second.
_RATES_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_RATES_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_SAMPLE_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


def true_length(
    file: soundfile.SoundFile, source: Any, place: str
) -> tuple[int | None, int | None]:
    """Return the frames that a file holds, as far as that shows without decoding, and promises.

    Args:
        file: the open file.
        source: what it was opened from: a path or a binary file.
        place: its name in errors.

    Returns:
        The length, None if the file must be decoded to find it; and the length in its header, None
        if it states none.

    Raises:
        AudioError: if libsndfile would stop long before the end.
    """
    length: int = file.frames
    if length >= UNKNOWN_LENGTH:
        return None, None
    if file.format != "MP3":
        return length, length
    counted, has_table = _mpeg_length(_content(source))
    if not counted:
        return length, length
    if counted > length + LEAST_MISSING * file.samplerate:
        stop, end = length / file.samplerate, counted / file.samplerate
        problem = f"lasts {end:.1f} s, but libsndfile would stop after {stop:.1f} s"
        raise AudioError(place, problem, "convert it: ffmpeg -i FILE FILE.flac")
    return min(length, counted), length if has_table else None


def read_frames(
    file: soundfile.SoundFile, first: int = 0, count: int | None = None
) -> numpy.ndarray[Any, Any]:
    """Return frames ``[n, C]`` from ``first`` on: ``count``, all, or what is left."""
    blocks, left = [], UNKNOWN_LENGTH if count is None else count
    try:
        if file.tell() != first:
            file.seek(first)
    except soundfile.LibsndfileError:  # it lies beyond the end
        left = 0
    while left > 0:
        block = numpy.full((min(BLOCK, left), file.channels), numpy.nan, numpy.float32)
        try:
            found = len(file.read(out=block))
        except soundfile.LibsndfileError:
            # The data end where the header promises more. What was decoded before is in the block.
            found = int(numpy.isfinite(block[:, 0]).cumprod().sum())
            left = 0
        blocks.append(block[:found])
        left = left - found if found else 0
    return numpy.concatenate(blocks) if blocks else numpy.zeros((0, file.channels), numpy.float32)


def _content(source: Any) -> Any:
    """Return the bytes of a path or of a binary file."""
    if isinstance(source, (str, bytes, Path)):
        with Path(os.fsdecode(source)).open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    at = source.tell()
    source.seek(0)
    data = source.read()
    source.seek(at)
    return data


def _mpeg_length(data: Any) -> tuple[int, bool]:
    """Count the samples of MPEG layer III audio by its frame headers.

    Returns:
        The samples, and whether a Xing header states the length.
    """
    place, samples, first, has_table = _after_tag(data), 0, True, False
    while place + 4 <= len(data):
        header = int.from_bytes(data[place : place + 4], "big")
        found = _frame(header)
        if found is None:
            place = data.find(b"\xff", place + 1)
            if place < 0:
                break
            continue
        size, count = found
        if place + size > len(data):  # cut off
            break
        # The first frame may hold a table for seeking in place of sound.
        start = data[place : place + 64]
        is_table = first and any(mark in start for mark in (b"Xing", b"Info", b"VBRI"))
        samples += 0 if is_table else count
        has_table = has_table or is_table
        first, place = False, place + size
    return samples, has_table


def _after_tag(data: Any) -> int:
    """Return where the audio begins after an ID3v2 tag."""
    if data[:3] != b"ID3":
        return 0
    size = 0
    for byte in data[6:10]:  # seven bits each
        size = size << 7 | byte & 0x7F
    return 10 + size


def _frame(header: int) -> tuple[int, int] | None:
    """Return the bytes and samples of the layer III frame that a header opens, or None."""
    version, layer = header >> 19 & 3, header >> 17 & 3
    rate, frequency = header >> 12 & 15, header >> 10 & 3
    if header >> 21 != 0x7FF or version == 1 or layer != 1 or rate in (0, 15) or frequency == 3:
        return None
    kbits = (_RATES_1 if version == 3 else _RATES_2)[rate]
    samples = 1152 if version == 3 else 576
    size = samples // 8 * kbits * 1000 // _SAMPLE_RATES[version][frequency] + (header >> 9 & 1)
    return size, samples
