"""Correct headers that state less than a file holds; refuse files of several streams. No torch.

libsndfile reads as many samples as a header states, of a file's first stream, and does not say that
more follow. Writers that were stopped, that wrote to a pipe or whose sizes overflowed leave such
headers.
"""

from __future__ import annotations

import io
import math
import os
import struct
from functools import lru_cache
from typing import IO, Any, NamedTuple, cast

from segue.core.errors import AudioError
from segue.sound.flac import FlacStream, begins_in, is_flac
from segue.sound.mpeg import after_tag

Source = str | bytes | IO[bytes]

OGG, OGG_HEADERS, OGG_LARGEST_PAGE = b"OggS\0", 1 << 16, 65_307  # RFC 3533
#: Formats whose samples go on to the end of the file, a second header among them: how they begin,
#: and how many bytes a second file of the same kind begins with as well.
MARKS = {
    b"riff.\x91\xcf\x11\xa5\xd6(\xdb\x04\xc1\0\0": 16,  # W64
    b"NIST_1A\n   1024\n": 16,
    b"Creative Voice File\x1a": 20,
}
LONGEST_MARK = max(MARKS.values())
UNKNOWN = 0x7FFF_F000  # bytes and more: what writers state who do not know
BLOCK = 1 << 20  # bytes that are looked through at once
MOST_PROMISED = 10  # times what a cut FLAC file holds, for which its header is believed
LEAST_UNREAD = 4096  # bytes after all that a header states: fewer are padding, or a tag


class Correction(NamedTuple):
    """Bytes that should stand at a place of a header."""

    place: int
    value: bytes


class Header(NamedTuple):
    """Hold what is wrong with a header."""

    correction: Correction | None = None  # where it states less than the file holds
    # Times as many samples as there are, by the header of a file that is cut off; infinite if
    # nothing says how many are missing.
    promise: float = 1.0


class Chunks(NamedTuple):
    """How files of one kind are made of chunks: where the first begins, the format of their sizes,
    what they are filled up to a multiple of, and the name of the one that holds the samples."""

    first: int
    form: str
    unit: int
    samples: bytes

    @property
    def head(self) -> int:
        return 4 + struct.calcsize(self.form)

    @property
    def most(self) -> int:
        return int(2 ** (8 * struct.calcsize(self.form) - self.form[1].islower()) - 1)

    def at(self, file: IO[bytes], place: int) -> tuple[bytes, int] | None:
        """Return name and size of the chunk there."""
        file.seek(place)
        head = file.read(self.head)
        return (head[:4], *struct.unpack(self.form, head[4:])) if len(head) == self.head else None


CHUNKS = {
    b"RIFF": Chunks(12, "<I", 2, b"data"),
    b"RF64": Chunks(12, "<I", 2, b"data"),
    b"FORM": Chunks(12, ">I", 2, b"SSND"),
    b"caff": Chunks(8, ">q", 1, b"data"),
}


class Corrected(io.RawIOBase):
    """Present a file with a correction; one that was opened for it is closed with it."""

    def __init__(self, source: Source, correction: Correction) -> None:
        super().__init__()
        self._owned = isinstance(source, (str, bytes))
        self._file = _open(source) if isinstance(source, (str, bytes)) else source
        self._place, self._value = correction

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, to: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(to, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        at = self._file.tell()
        data = bytearray(self._file.read(len(buffer)))
        for place, byte in enumerate(self._value, start=self._place - at):
            if 0 <= place < len(data):
                data[place] = byte
        memoryview(buffer)[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if self._owned:
            self._file.close()
        super().close()


def corrected(source: Source) -> tuple[Source, float]:
    """Return the source, with a corrected header if that states less than the file holds.

    Returns:
        The source, and the samples that its header promises as a multiple of those there are.

    Raises:
        AudioError: if it holds several streams or files, one after the other.
    """
    if isinstance(source, (str, bytes)):
        status = os.stat(source)  # noqa: PTH116  # names may be any bytes
        found = _header_of(source, status.st_size, status.st_mtime_ns)
    else:
        found = _header(source)
    if found.correction is not None:
        source = cast("IO[bytes]", Corrected(source, found.correction))
    return source, found.promise


def _open(path: str | bytes) -> IO[bytes]:
    return open(path, "rb")  # noqa: PTH123  # names may be any bytes


@lru_cache(maxsize=1 << 16)
def _header_of(path: str | bytes, size: int, changed: int) -> Header:
    with _open(path) as file:
        return _header(file)


def _header(file: IO[bytes]) -> Header:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    begin = file.read(LONGEST_MARK)
    magic = begin[:4]
    if magic in CHUNKS:
        return _in_chunks(file, magic, size)
    if magic == b".snd":
        file.seek(4)
        return _in_au(file, size)
    if magic == OGG[:4]:
        return _in_ogg(file, size)
    for mark, length in MARKS.items():
        if begin.startswith(mark):
            _check_single(file, begin[:length])
    start = after_tag(file) if magic[:3] == b"ID3" else 0
    return _in_flac(file, start, size) if is_flac(file, start) else Header()


def _in_chunks(file: IO[bytes], magic: bytes, size: int) -> Header:
    kind, at, wide = CHUNKS[magic], CHUNKS[magic].first, None
    while (chunk := kind.at(file, at)) and chunk[0] != kind.samples:
        if chunk[0] == b"ds64":  # of RF64: the size of the samples comes second
            wide = at + kind.head + 8
        if chunk[0] == b"fmt ":
            _check_blocks(file.read(16))
        at += kind.head + chunk[1] + -chunk[1] % kind.unit
    if chunk is None:
        return Header()
    begin, stated, place, form, most = at + kind.head, chunk[1], at + 4, kind.form, kind.most
    if magic == b"RF64" and wide is not None and stated == most:
        place, form, most = wide, "<Q", 2**64 - 1
        file.seek(place)
        (stated,) = struct.unpack(form, file.read(8))
    left = size - begin
    if stated < 0:  # of CAF: to the end
        return Header(Correction(place, struct.pack(form, left)))
    if stated >= left:
        # libsndfile refuses CAF files that are cut off.
        short = magic == b"caff" and stated > left
        correction = Correction(place, struct.pack(form, left)) if short else None
        return Header(correction, _promise(stated, left))
    stops = {begin + stated, begin + stated + -stated % kind.unit}  # not all writers fill up
    known = max(_end_of_chunks(file, stop, kind, size) for stop in stops)
    file.seek(known)
    if file.read(4) == magic:
        raise _several(known)
    if _is_nothing(file, known, size, stated):
        return Header()
    if left > most:
        problem = "holds more samples than the sizes in its header can state"
        raise AudioError("file", problem, "write it as W64")
    return Header(Correction(place, struct.pack(form, left)))


def _check_blocks(form: bytes) -> None:
    """Refuse a WAV header whose numbers contradict each other: samples would become noise."""
    code, channels, _, _, block, bits = struct.unpack("<HHIIHH", form.ljust(16, b"\0"))
    # Check PCM, floats and WAVEX; a block of 0 bytes is unstated, and 24 bits may stand in 32.
    if code not in (1, 3, 0xFFFE) or not (channels and block):
        return
    if block != channels * -(-bits // 8) and (block, bits) != (4 * channels, 24):
        problem = f"has a header that states {channels} channels of {bits} bits in {block} bytes"
        raise AudioError("file", problem, "correct the header, or write the file again")


def near(file: IO[bytes]) -> bool:
    """Return whether it is quick to look through the whole file."""
    return isinstance(file, (io.BufferedReader, io.BytesIO))


def _check_single(file: IO[bytes], mark: bytes) -> None:
    """Refuse a file in which another one begins."""
    place = _find(file, mark, len(mark))
    if place is not None:
        raise _several(place)


def _find(file: IO[bytes], mark: bytes, start: int) -> int | None:
    """Return where some bytes stand, from a place on, or None."""
    at = file.seek(start)
    kept = b""
    while block := file.read(BLOCK):
        data = kept + block
        if (found := data.find(mark)) >= 0:
            return at - len(kept) + found
        at, kept = at + len(block), data[-len(mark) + 1 :]
    return None


def _promise(stated: int, left: int) -> float:
    """Return what a size that reaches beyond the end promises; those of unknown length, nothing."""
    return stated / left if left > 0 and stated < UNKNOWN else 1.0


def _is_nothing(file: IO[bytes], place: int, size: int, stated: int) -> bool:
    """Return whether the bytes from a place on cannot be samples: few, or only zeros."""
    if size - place < (LEAST_UNREAD if stated else 1):
        return True
    file.seek(place)
    while block := file.read(BLOCK):
        if block.strip(b"\0"):
            return False
    return True


def _end_of_chunks(file: IO[bytes], at: int, kind: Chunks, size: int) -> int:
    """Return where the last of the chunks ends that follow the samples."""
    while chunk := kind.at(file, at):
        name, length = chunk
        stop = at + kind.head + length
        if name in CHUNKS or length < 0 or stop > size or not name.decode("latin-1").isprintable():
            break
        at = min(size, stop + -length % kind.unit)
    return at


def _in_au(file: IO[bytes], size: int) -> Header:
    begin, stated = struct.unpack(">II", file.read(8).ljust(8, b"\0"))
    stop = begin + stated
    if stop >= size:
        return Header(promise=_promise(stated, size - begin))
    file.seek(stop)
    if file.read(4) == b".snd":
        raise _several(stop)
    if _is_nothing(file, stop, size, stated):
        return Header()
    return Header(Correction(8, b"\xff" * 4))  # to the end


def _in_flac(file: IO[bytes], start: int, size: int) -> Header:
    stream = FlacStream(file, start)
    last = stream.last_sample(file, size)
    if (near(file) or stream.samples != last) and begins_in(file, start + 4):
        raise _streams("FLAC")
    place = start + stream.TOTAL
    if last and stream.samples > MOST_PROMISED * last:  # most of it is missing
        return Header(Correction(place, stream.stating(last)), stream.samples / last)
    if stream.samples == 0 or stream.samples >= last:
        return Header()
    return Header(Correction(place, stream.stating(0)))


def _in_ogg(file: IO[bytes], size: int) -> Header:
    """Refuse a file of several streams one after the other; say if its last page is cut."""
    file.seek(0)
    begun, at = set(), 0
    begin = file.read(OGG_HEADERS)
    while begin[at : at + 5] == OGG and len(begin) > at + 27 and begin[at + 5] & 2:
        begun.add(begin[at + 14 : at + 18])  # the serial number of a stream's first page
        segments = begin[at + 27 : at + 27 + begin[at + 26]]
        at += 27 + len(segments) + sum(segments)
    file.seek(max(0, size - OGG_LARGEST_PAGE))
    end = file.read()
    if near(file) and _find(file, OGG + b"\2", at) is not None:  # the first page of another
        raise _streams("Ogg")
    last = end.rfind(OGG)
    if last < 0:
        return Header()
    head = end[last:]
    if begun and len(head) >= 27 and head[14:18] not in begun:
        raise _streams("Ogg")
    whole = 27 + head[26] + sum(head[27 : 27 + head[26]]) if len(head) >= 27 else 27
    return Header(promise=math.inf if len(head) < whole else 1.0)


def _streams(kind: str) -> AudioError:
    problem = f"holds several {kind} streams one after the other, of which only the first is read"
    return AudioError("file", problem, "join them: ffmpeg -i FILE FILE.flac")


def _several(place: int) -> AudioError:
    problem = "holds several files one after the other, which libsndfile takes for one"
    fix = f"take them apart: head -c {place} FILE > FIRST; tail -c +{place + 1} FILE > REST"
    return AudioError("file", problem, fix)
