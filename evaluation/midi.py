"""Read the notes of a Standard MIDI file (MMA, RP-001) and when each key sounds."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from segue.core.errors import DataError
from segue.core.metrics import Note

PEDAL, DRUMS = 64, 9
MICROSECONDS_PER_BEAT = 500_000  # until a file says otherwise
DATA_BYTES = {0xC: 1, 0xD: 1}  # of channel messages; the others have two
SUFFIXES = (".mid", ".midi")


@dataclass(frozen=True)
class _Event:
    tick: int
    status: int
    data: bytes


def find_scores(folder: Path) -> dict[str, Path]:
    """Find the MIDI files below a folder, by the stem that recordings share with them.

    Raises:
        DataError: if the folder does not exist, or two files have one stem.
    """
    if not folder.is_dir():
        raise DataError(str(folder), "is not a folder", "name the folder of the MIDI files")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        if path.stem in found:
            raise DataError(
                str(folder), f"has two MIDI files called {path.stem!r}", "rename one of them"
            )
        found[path.stem] = path
    return found


def read_notes(path: Path) -> list[Note]:
    """Read every note, held as long as its key or the sustain pedal is down.

    Raises:
        DataError: if it is not a MIDI file, is cut short, or does not count time in beats.
    """
    try:
        data = path.read_bytes()
        if data[:4] != b"MThd":
            raise ValueError("no header")
        length, _, tracks, division = struct.unpack(">IHHH", data[4:14])
        if division & 0x8000:
            raise ValueError("time in film frames")
        if not division:
            raise ValueError("no ticks per beat")
        events, place = [], 8 + length
        for _ in range(tracks):
            size = struct.unpack(">I", data[place + 4 : place + 8])[0]
            if place + 8 + size > len(data):
                raise ValueError("cut short")
            if data[place : place + 4] == b"MTrk":
                events += list(_events(data[place + 8 : place + 8 + size]))
            place += 8 + size
    except (OSError, ValueError, IndexError, struct.error) as error:
        raise DataError(str(path), f"is not a MIDI file ({error})", "check the file") from error
    # What ends at a time comes before what starts there; a note-on of velocity 0 is an end.
    events.sort(key=lambda event: (event.tick, event.status >> 4 == 0x9 and event.data[1] > 0))
    return _sounding(events, division)


def _events(track: bytes) -> Iterator[_Event]:
    tick, place, status = 0, 0, 0
    while place < len(track):
        delta, place = _number(track, place)
        tick += delta
        if track[place] & 0x80:
            status, place = track[place], place + 1
        if not status & 0x80:
            raise ValueError("an event without a status")
        if status == 0xFF:
            kind, (size, place) = track[place], _number(track, place + 1)
            if kind == 0x51:  # tempo
                yield _Event(tick, status, _data(track, place, size))
        elif status in (0xF0, 0xF7):
            size, place = _number(track, place)
        else:
            size = DATA_BYTES.get(status >> 4, 2)
            yield _Event(tick, status, _data(track, place, size))
        place += size


def _data(track: bytes, place: int, size: int) -> bytes:
    if place + size > len(track):
        raise ValueError("an event is cut short")
    return track[place : place + size]


def _number(track: bytes, place: int) -> tuple[int, int]:
    """Read a number of seven bits per byte; return it and where it ends."""
    value = 0
    while True:
        byte = track[place]
        value, place = value << 7 | byte & 0x7F, place + 1
        if not byte & 0x80:
            return value, place


def _sounding(events: list[_Event], division: int) -> list[Note]:
    notes: list[Note] = []
    started: dict[tuple[int, int], float] = {}  # (channel, pitch) of keys that sound
    held: dict[int, set[int]] = {}  # by channel with the pedal down: keys that were let go
    seconds, tick, tempo = 0.0, 0, MICROSECONDS_PER_BEAT

    def stop(channel: int, pitch: int) -> None:
        start = started.pop((channel, pitch), None)
        if start is not None and seconds > start:
            notes.append(Note(pitch, start, seconds))

    for event in events:
        seconds += (event.tick - tick) * tempo / division / 1e6
        tick = event.tick
        if event.status == 0xFF:
            tempo = int.from_bytes(event.data, "big")
            continue
        kind, channel = event.status >> 4, event.status & 15
        if channel == DRUMS or kind not in (0x8, 0x9, 0xB):
            continue
        first, second = event.data
        if kind == 0x9 and second:
            stop(channel, first)
            started[channel, first] = seconds
            held.get(channel, set()).discard(first)
        elif kind in (0x8, 0x9):
            if channel in held:
                held[channel].add(first)
            else:
                stop(channel, first)
        elif first == PEDAL and second >= 64:
            held.setdefault(channel, set())
        elif first == PEDAL:
            for pitch in held.pop(channel, set()):
                stop(channel, pitch)
    for channel, pitch in list(started):
        stop(channel, pitch)
    return sorted(notes, key=lambda note: (note.start, note.pitch))
