"""Find the frames of MPEG audio, layer III, and cut out those that a stretch of sound needs.

libsndfile believes what a file's first frame says of its length, and does not find its place in the
middle of one: frames borrow bytes of those before them, which a decoder that starts there lacks.
"""

from __future__ import annotations

import io
import struct
from array import array
from dataclasses import dataclass
from functools import cache
from typing import IO, NamedTuple

# Tables of ISO 11172-3 and 13818-3: kbit/s and samples per second.
_RATES_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_RATES_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_SAMPLE_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}

CHUNK = 1 << 20  # bytes that are looked through at a time
LARGEST = 4096  # bytes of a frame, and more
DECODER_DELAY = 529  # samples, by which libmpg123 cuts more than the encoder's delay
WARM_UP = 4  # frames, after which a decoder that began in the middle is right
LEAST_LEFT_OUT = 2  # frames: the bytes of a tag may look like one
RESERVOIR = 511  # bytes before a frame that it may borrow
UNPROTECTED = 1 << 16  # bit of a header: no checksum follows


class Frame(NamedTuple):
    """The meaning of a frame's header: its bytes, its samples, the bytes of side information
    behind the four of the header, its sample rate, and whether it has one channel."""

    size: int
    samples: int
    side: int
    rate: int
    mono: bool


@dataclass(frozen=True)
class MpegFrames:
    """The frames of a file that hold sound."""

    offsets: array[int]  # in bytes, where each begins
    samples: int  # in all
    has_table: bool  # a Xing header states the length
    delay: int  # samples at the start that decoding leaves out
    # Seconds of sound at another sample rate than the first, or with more or fewer channels, which
    # decoders leave out.
    others: float = 0.0
    # Place in the file of the number of frames that the header states, and this number; None if it
    # states none.
    counted: tuple[int, int] | None = None

    @property
    def correction(self) -> tuple[int, bytes] | None:
        """Return where the number of frames stands and its right bytes, if it is too small."""
        if self.counted is None or len(self.offsets) - self.counted[1] < LEAST_LEFT_OUT:
            return None
        return self.counted[0], len(self.offsets).to_bytes(4, "big")

    def excerpt(self, file: IO[bytes], first: int, count: int) -> tuple[io.BytesIO, int]:
        """Return a file of the frames that samples ``first .. first + count - 1`` lie in.

        Returns:
            The file, and how many of its samples come before the first.
        """
        spread = self.samples // len(self.offsets)  # samples of a frame
        wanted, skipped = divmod(first + self.delay, spread)
        last = min(len(self.offsets), (first + count + self.delay) // spread + 2)
        begin = max(0, wanted - WARM_UP)
        lead, borrowed = begin, 0
        while lead and borrowed < RESERVOIR:
            lead -= 1
            borrowable = self._frame(file, lead)
            borrowed += borrowable.size - borrowable.side - 4
        silence, behind = _silenced(self._bytes(file, lead), 0)  # makes up for the decoder's delay
        frames = [silence]
        for index in range(lead, last):
            frame = self._bytes(file, index)
            if index < begin:
                frame, behind = _silenced(frame, behind)
            frames.append(frame)
        header = int.from_bytes(frames[0][:4], "big")
        made = io.BytesIO(b"".join([_table(header, len(frames)), *frames]))
        return made, (wanted - lead + 1) * spread + skipped - DECODER_DELAY

    def _frame(self, file: IO[bytes], index: int) -> Frame:
        file.seek(self.offsets[index])
        found = frame_of(int.from_bytes(file.read(4), "big"))
        assert found is not None
        return found

    def _bytes(self, file: IO[bytes], index: int) -> bytes:
        size = self._frame(file, index).size
        file.seek(self.offsets[index])
        return file.read(size)


def frame_of(header: int) -> Frame | None:
    """Return what four bytes mean as the header of a layer III frame, or None."""
    return _frame_of(header >> 6) if header >> 21 == 0x7FF else None


@cache
def _frame_of(header: int) -> Frame | None:
    version, layer, protected = header >> 13 & 3, header >> 11 & 3, not header >> 10 & 1
    rate, frequency, padding = header >> 6 & 15, header >> 4 & 3, header >> 3 & 1
    mono = header & 3 == 3
    if version == 1 or layer != 1 or rate in (0, 15) or frequency == 3:
        return None
    kbits = (_RATES_1 if version == 3 else _RATES_2)[rate]
    samples = 1152 if version == 3 else 576
    per_second = _SAMPLE_RATES[version][frequency]
    size = samples // 8 * kbits * 1000 // per_second + padding
    side = (17 if mono else 32) if version == 3 else (9 if mono else 17)
    return Frame(size, samples, side + 2 * protected, per_second, mono)


def find_frames(file: IO[bytes]) -> MpegFrames | None:
    """Look through a file for its frames; return None if it holds no layer III audio."""
    offsets, samples, delay, has_table, first = array("q"), 0, 0, False, True
    counted: tuple[int, int] | None = None
    own, others, follows = (0, False), 0.0, -1
    base = after_tag(file)
    file.seek(base)
    data, place, more = b"", 0, True
    while True:
        if more and place + LARGEST > len(data):
            added = file.read(CHUNK)
            base, data, place, more = base + place, data[place:] + added, 0, bool(added)
        if place + 4 > len(data):
            break
        found = frame_of(int.from_bytes(data[place : place + 4], "big"))
        if found is None:
            place = data.find(b"\xff", place + 1)
            place = len(data) if place < 0 else place
            continue
        if place + found.size > len(data):  # cut off
            break
        if first:
            has_table, delay, at = _read_table(data[place : place + found.size], found)
            if at:
                stated = int.from_bytes(data[place + at : place + at + 4], "big")
                counted = base + place + at, stated
            own = found.rate, found.mono
        if (found.rate, found.mono) != own:
            if follows == base + place:  # in other bytes a frame may seem to begin, but not two
                others += found.samples / found.rate
            follows = base + place + found.size
        if not (first and has_table):
            offsets.append(base + place)
            samples += found.samples
        first, place = False, place + found.size
    if not samples:
        return None
    return MpegFrames(offsets, samples, has_table, delay, others, counted)


def after_tag(file: IO[bytes]) -> int:
    """Return where the audio begins after an ID3v2 tag."""
    file.seek(0)
    start = file.read(10)
    if start[:3] != b"ID3":
        return 0
    size = 0
    for byte in start[6:10]:  # seven bits each
        size = size << 7 | byte & 0x7F
    return 10 + size


def _read_table(frame: bytes, found: Frame) -> tuple[bool, int, int]:
    """Return whether a file's first frame holds a table in place of sound, the delay that it
    states, and where in it the number of frames stands; 0 if nowhere."""
    if not any(mark in frame[:64] for mark in (b"Xing", b"Info", b"VBRI")):
        return False, 0, 0
    start = 4 + found.side
    if frame[start : start + 4] not in (b"Xing", b"Info"):
        return True, 0, 0
    flags = int.from_bytes(frame[start + 4 : start + 8], "big")
    # Optional fields: frames, bytes, 100 places to seek to, quality. Then comes the encoder's part.
    encoder = start + 8 + sum(size for bit, size in enumerate((4, 4, 100, 4)) if flags >> bit & 1)
    delay = int.from_bytes(frame[encoder + 21 : encoder + 24], "big") >> 12
    return True, delay + DECODER_DELAY, start + 8 if flags & 1 else 0


def _silenced(frame: bytes, behind: int) -> tuple[bytes, int]:
    """Return a frame that sounds of nothing, from which later ones can borrow as before.

    Args:
        behind: bytes of the frames before it that can be borrowed.

    Returns:
        The frame, and how many bytes can be borrowed after it.
    """
    header = int.from_bytes(frame[:4], "big")
    found = frame_of(header)
    assert found is not None
    bits = 9 if found.samples == 1152 else 8
    # It borrows all that there is: decoders keep no more than a frame asks for.
    borrowed = min(behind, 2**bits - 1)
    side = (borrowed << 16 - bits).to_bytes(2, "big").ljust(found.side, b"\0")
    sound = frame[4 + found.side :]
    return (header | UNPROTECTED).to_bytes(4, "big") + side + sound, borrowed + len(sound)


def _table(header: int, count: int) -> bytes:
    """Return a frame that states how many follow: decoders guess the length from it."""
    header = (header | UNPROTECTED) & ~(15 << 12) | 9 << 12  # of a bit rate that leaves room
    found = frame_of(header)
    assert found is not None
    start = header.to_bytes(4, "big") + bytes(found.side)
    return (start + b"Info" + struct.pack(">II", 1, count)).ljust(found.size, b"\0")
