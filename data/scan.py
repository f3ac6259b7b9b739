"""Listen to every recording once: can it be used, how long is it, which sound does it hold?"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy

from segue.core.audio import SILENCE
from segue.core.errors import AudioError
from segue.core.files import write_text
from segue.data.audio_files import open_recording
from segue.data.recordings import Recording, Recordings
from segue.data.workers import in_processes

CHUNK = 256  # recordings that are scanned, and kept, at once
BLOCK_SECONDS = 10.0  # of audio in memory

#: Kinds of problems; ``duplicate`` is found afterwards, by the hash.
KINDS = ("missing", "corrupt", "nan", "silent", "too short", "duplicate", "not usable")


@dataclass(frozen=True)
class Scanned:
    """The outcome of scanning one recording."""

    seconds: float  # its true length
    sound: int  # 64 bits of a hash of its sample rate and samples, whatever the file format
    kind: str = ""  # of the problem, from ``KINDS``; empty if there is none
    problem: str = ""  # in words


@dataclass(frozen=True)
class Chunk:
    """One process's share: recordings, and the file for what is found out about them."""

    target: Path
    recordings: Sequence[Recording]
    min_seconds: float


def scan(
    recordings: Recordings, directory: Path, min_seconds: float, workers: int
) -> Iterator[tuple[int, float]]:
    """Scan recordings that have not been scanned, chunk by chunk.

    Args:
        directory: keeps what was heard; a run that was killed goes on from it.

    Yields:
        Recordings and seconds of audio of each chunk, in the order they are ready.
    """
    todo = []
    for number in range(-(-len(recordings) // CHUNK)):
        path = chunk_file(directory, recordings, number, min_seconds)
        heard = read_chunk(path) if path.is_file() else []
        # A missing file may be there now: its disk was not mounted, say.
        if heard and not any(h.kind == "missing" for h in heard):
            yield len(heard), sum(h.seconds for h in heard)
        else:
            todo.append(number)
    chunks = (
        Chunk(
            chunk_file(directory, recordings, number, min_seconds),
            list(recordings[number * CHUNK : (number + 1) * CHUNK]),
            min_seconds,
        )
        for number in todo
    )
    yield from in_processes(scan_chunk, chunks, workers)


def chunk_file(directory: Path, recordings: Recordings, number: int, min_seconds: float) -> Path:
    """Return the file of a chunk, named by a hash of its recordings."""
    digest = hashlib.sha256(f"{min_seconds}".encode())
    for recording in recordings[number * CHUNK : (number + 1) * CHUNK]:
        digest.update(f"{recording.place}|{recording.size}\n".encode(errors="surrogateescape"))
    return directory / f"{number:07d}-{digest.hexdigest()[:16]}.json"


def scan_chunk(chunk: Chunk) -> tuple[int, float]:
    heard = [listen(recording, chunk.min_seconds) for recording in chunk.recordings]
    write_text(chunk.target, json.dumps([list(asdict(h).values()) for h in heard]))
    return len(heard), sum(h.seconds for h in heard)


def read_chunk(path: Path) -> list[Scanned]:
    return [Scanned(*row) for row in json.loads(path.read_text(encoding="utf-8"))]


def listen(recording: Recording, min_seconds: float) -> Scanned:
    """Decode a recording block by block."""
    digest, peak, samples = hashlib.blake2b(digest_size=8), 0.0, 0
    try:
        with open_recording(recording) as opened:
            rate = opened.rate
            digest.update(str(rate).encode())
            block = round(BLOCK_SECONDS * rate)
            while samples < opened.length:
                wave = opened.read(samples, block)
                if not wave.numel():
                    return _cut_off(samples / rate, opened.length / rate)
                digest.update(wave.numpy().tobytes())
                peak = max(peak, float(wave.abs().max()))
                samples += wave.numel()
            if recording.start is None and opened.promised > samples / rate:
                return _cut_off(samples / rate, opened.promised)
    except AudioError as error:
        return Scanned(0.0, 0, _kind(error), error.problem)
    seconds, sound = samples / rate, int.from_bytes(digest.digest(), "little")
    if seconds < min_seconds:
        problem = f"lasts {seconds:.3f} s, less than {min_seconds:g} s"
        return Scanned(seconds, sound, "too short", problem)
    if peak < SILENCE:
        return Scanned(seconds, sound, "silent", f"its loudest sample is {peak:.1e}")
    return Scanned(seconds, sound)


def _cut_off(seconds: float, promised: float) -> Scanned:
    whole = f" of {promised:.3f}" if math.isfinite(promised) else ""
    return Scanned(seconds, 0, "corrupt", f"is cut off after {seconds:.3f}{whole} s")


def _kind(error: AudioError) -> str:
    if "NaN" in error.problem:
        return "nan"
    return "missing" if error.problem == "does not exist" else "corrupt"


def first_of_each(
    sounds: numpy.ndarray[tuple[int], numpy.dtype[numpy.uint64]],
) -> numpy.ndarray[tuple[int], numpy.dtype[numpy.int64]]:
    """Return, for each sound, the number of the first recording that has it."""
    _, first, back = numpy.unique(sounds, return_index=True, return_inverse=True)
    return first[back]
