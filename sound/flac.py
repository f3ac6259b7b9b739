"""Find what a FLAC file states of its length, and where its samples end (RFC 9639)."""

from __future__ import annotations

from typing import IO

MAGIC = b"fLaC"
BEGINS = MAGIC + b"\0\0\0\x22", MAGIC + b"\x80\0\0\x22"  # then come 34 bytes on the stream
BLOCK = 1 << 20  # bytes that are looked through at once
TRAILING = 1 << 16  # bytes of tags after the last frame, at most
LARGEST_FRAME = 1 << 18  # bytes, where the header does not say


class FlacStream:
    """Hold what the header of a stream states.

    Attributes:
        samples: in all; 0 if unknown.
    """

    TOTAL = 21  # place of the five bytes that end with the number of samples

    def __init__(self, file: IO[bytes], start: int) -> None:
        file.seek(start)
        head = file.read(self.TOTAL + 5).ljust(self.TOTAL + 5, b"\0")
        self._block = int.from_bytes(head[10:12], "big")
        self._largest = int.from_bytes(head[15:18], "big") or LARGEST_FRAME
        self._channels = (head[20] >> 1 & 7) + 1
        total = int.from_bytes(head[self.TOTAL :], "big")
        self.samples = total & (1 << 36) - 1
        self._others = total - self.samples  # bits of those bytes

    def stating(self, samples: int) -> bytes:
        """Return the bytes at ``TOTAL`` that would state another number; 0 for unknown."""
        return (self._others + samples).to_bytes(5, "big")

    def last_sample(self, file: IO[bytes], size: int) -> int:
        """Return up to where the frames at the end of the file count, or 0."""
        file.seek(max(0, size - self._largest - TRAILING))
        end, at, found = file.read(), -1, 0
        while (at := end.find(b"\xff", at + 1)) >= 0:
            found = max(found, self._frame_end(end[at : at + 16]))
        return found

    def _frame_end(self, head: bytes) -> int:
        """Return the number of the sample after a frame, or 0 if no frame begins so."""
        if len(head) < 6 or head[1] & 0xFE != 0xF8 or head[3] & 1:
            return 0
        size, rate, channels = head[2] >> 4, head[2] & 15, head[3] >> 4
        if not size or rate == 15 or (channels + 1 if channels < 8 else 2) != self._channels:
            return 0
        more = max(0, 8 - (head[4] ^ 0xFF).bit_length() - 1)  # bytes, in the manner of UTF-8
        at = 5 + more
        number = head[4] & 0x7F >> (more + 1 if more else 0)
        for byte in head[5:at]:
            number = number << 6 | byte & 0x3F
        if size in (6, 7):
            length = int.from_bytes(head[at : at + size - 5], "big") + 1
            at += size - 5
        else:
            length = 192 if size == 1 else 576 << size - 2 if size < 6 else 256 << size - 8
        at += {12: 1, 13: 2, 14: 2}.get(rate, 0)
        if at >= len(head) or _crc(head[:at]) != head[at]:
            return 0
        return (number if head[1] & 1 else number * self._block) + length


def is_flac(file: IO[bytes], start: int) -> bool:
    file.seek(start)
    return file.read(4) == MAGIC


def begins_in(file: IO[bytes], start: int) -> bool:
    """Return whether a stream begins anywhere from ``start`` on."""
    file.seek(start)
    kept = b""
    while block := file.read(BLOCK):
        data = kept + block
        if MAGIC in data and any(begin in data for begin in BEGINS):
            return True
        kept = data[-len(BEGINS[0]) + 1 :]
    return False


def _crc(data: bytes) -> int:
    value = 0
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value << 1 ^ (0x07 if value & 0x80 else 0)) & 0xFF
    return value
