"""Read files and streams as mono audio at their own rate; errors name the file and the fix."""

from __future__ import annotations

import math
from pathlib import Path
from typing import BinaryIO

import numpy
import torch

from segue.core.audio import Audio, to_mono
from segue.core.errors import AudioError
from segue.sound.opening import decoding, open_sound
from segue.sound.reader import LEAST_MISSING, SoundReader

STEREO_RATE = 2 * 48_000  # samples a second of all channels


def read_audio(
    source: Path | str | BinaryIO,
    *,
    first_seconds: float | None = None,
    last_seconds: float | None = None,
    most_seconds: float | None = None,
    place: str | None = None,
) -> Audio:
    """Read any file that libsndfile knows as mono audio at its own rate.

    Args:
        source: WAV, FLAC, Ogg, Opus, MP3, AIFF, ...: a path, or a file opened in binary mode, which
            is read to its end.
        first_seconds: read no more than this; a two-hour file costs no more.
        last_seconds: the same, from the end; give at most one of the two.
        most_seconds: refuse a file that lasts longer, or holds more samples in all its channels
            than so much stereo at 48 kHz: a small file can decode to hours, and not every header
            states the length.
        place: the file's name in errors; by default its path.

    Raises:
        AudioError: if the file is missing, empty, not audio, or contains NaN.
    """
    if place is None:
        place = str(source if isinstance(source, (str, Path)) else getattr(source, "name", "file"))
    most_samples = None if most_seconds is None else round(most_seconds * STEREO_RATE)
    with open_sound(source, place, most_samples) as sound, decoding(place):
        rate, limit = sound.rate, first_seconds if last_seconds is None else last_seconds
        if most_seconds is not None and most_samples is not None:
            _check_length(sound, place, most_seconds, most_samples)
        start, wanted = _stretch(sound, limit, last_seconds is not None)
        data = sound.read(start, wanted)
        if len(data) < wanted - LEAST_MISSING * rate:
            sound.measure()  # it is cut off: only decoding shows where
            start, wanted = _stretch(sound, limit, last_seconds is not None)
            data = sound.read(start, wanted)
        total, promised = sound.length, sound.promised
    if not data.size:
        if promised:  # NaN if a part of unknown length is missing
            what = f"none of its {promised / rate:.1f} s" if math.isfinite(promised) else "no part"
            problem = f"is damaged: {what} can be read"
            raise AudioError(place, problem, "restore it from its source")
        raise AudioError(place, "holds no sample", "name a file that holds audio")
    if not numpy.isfinite(data).all():
        raise AudioError(place, "holds NaN or infinite samples", "repair the file")
    notes = []
    if promised is not None and total < promised - LEAST_MISSING * rate:
        notes.append(cut_off(total / rate, promised / rate))
    if wanted < total:
        end = "first" if last_seconds is None else "last"
        notes.append(f"used the {end} {wanted / rate:.1f} s of {total / rate:.1f} s")
    wave, mixed = to_mono(torch.from_numpy(data.T.copy()))
    if data.shape[1] > 1:
        notes.append(mixed)
    return Audio(wave, rate, tuple(notes))


def _check_length(sound: SoundReader, place: str, seconds: float, samples: int) -> None:
    """Refuse what lasts longer, or holds more samples in all its channels."""
    most, alike = samples / sound.channels / sound.rate, " at this rate with as many channels"
    if most >= seconds:
        most, alike = seconds, ""
    if sound.length > most * sound.rate:
        fix = f"give at most {most:.1f} s{alike}"
        raise AudioError(place, f"lasts more than {most:.1f} s", fix)


def cut_off(seconds: float, promised: float) -> str:
    """Return the note on a file that holds less than its header promises."""
    if math.isinf(promised):
        return f"is cut off after {seconds:.1f} s"
    return f"is cut off: it holds {seconds:.1f} s of {promised:.1f} s"


def _stretch(sound: SoundReader, seconds: float | None, at_end: bool) -> tuple[int, int]:
    """Return first sample and number of the samples that are wanted."""
    wanted = sound.length if seconds is None else min(sound.length, round(seconds * sound.rate))
    return sound.length - wanted if at_end else 0, wanted
