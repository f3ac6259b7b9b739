"""Open files that libsndfile knows; errors name the file and the fix. No torch."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import soundfile

from segue.core.errors import AudioError
from segue.core.files import native
from segue.sound.reader import SoundReader


def open_sound(
    source: Path | str | BinaryIO, place: str, most_samples: int | None = None
) -> SoundReader:
    """Open a file that libsndfile knows: a path, or a binary file, which is read to its end.

    Raises:
        AudioError: if the file is missing, empty or not audio.
    """
    if isinstance(source, (str, Path)):
        path = Path(source)
        _check_file(path, place)
        with decoding(place):
            return SoundReader(native(path), most_samples)
    try:
        data = source.read()
    except (OSError, ValueError) as error:
        raise AudioError(place, f"cannot be read ({error})", "open it with mode 'rb'") from error
    if not isinstance(data, bytes):
        raise AudioError(place, "is open as text", "open it with mode 'rb'")
    if not data:
        fix = "give a whole file; if it was read before, open it again or seek(0) first"
        raise AudioError(place, "holds no bytes from here on", fix)
    with decoding(place):
        return SoundReader(io.BytesIO(data), most_samples)


@contextmanager
def decoding(place: str) -> Iterator[None]:
    """Turn what libsndfile and its readers raise in the block into an ``AudioError``."""
    try:
        yield
    except AudioError as error:  # its reader knows the path only, which may be a copy's
        raise AudioError(place, error.problem, error.fix) from error
    except (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError, MemoryError) as error:
        raise AudioError(
            place,
            f"cannot be read as audio ({_reason(error)})",
            "use a format that libsndfile reads, such as WAV, FLAC, Ogg or MP3, not MP4 or WebM",
        ) from error


def _reason(error: Exception) -> str:
    """Return the last line of a message, without the path or object that libsndfile names first:
    it may be another name of the file."""
    text = str(getattr(error, "error_string", error))
    lines = text.splitlines() or [type(error).__name__]
    if "(possibly a pipe?)" in lines[-1]:  # libsndfile's words for an MP3 file that it gives up on
        return "no sound can be decoded"
    return lines[-1].rstrip(".")


def _check_file(path: Path, place: str) -> None:
    try:
        if not path.exists():
            raise AudioError(place, "does not exist", "check the path")
        if path.is_dir():
            raise AudioError(place, "is a directory", "name one audio file")
        if path.stat().st_size == 0:
            raise AudioError(place, "is an empty file", "name a file that holds audio")
    except OSError as error:
        raise AudioError(place, f"cannot be read ({error.strerror})", "check the path") from error
