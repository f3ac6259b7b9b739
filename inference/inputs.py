"""Take a prompt in any of the forms that callers have it in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, cast

from segue.core.audio import Audio, as_audio
from segue.core.errors import AudioError
from segue.core.validation import whole_number
from segue.inference.request import GeneratedAudio
from segue.sound.reading import read_audio

#: A prompt: a path, an open file, ``(wave, sample_rate)``, or audio.
Prompt = object

FORMS = "give a path, an open file, (wave, sample_rate) or Audio"


def as_prompt(value: Prompt, place: str, last_seconds: float | None = None) -> Audio:
    """Return a prompt as mono audio at its own rate.

    Args:
        value: a path; a file opened in binary mode; a pair of a wave ``[T]``, ``[C, T]`` or
            ``[T, C]`` and its sample rate; ``{"array": ..., "sampling_rate": ...}``, as Hugging
            Face data sets have it; ``Audio``; or a result of one row.
        place: its name in errors.
        last_seconds: read no more than this of a file, from its end.

    Raises:
        AudioError: if it is none of these, or cannot be used.
    """
    if isinstance(value, Audio):
        return value
    if isinstance(value, GeneratedAudio):
        if len(value.wave) == 1:
            return Audio(value.row(), value.sample_rate)
        problem = f"is a result of {len(value.wave)} rows"
        raise AudioError(place, problem, "choose one: (audio.row(0), audio.sample_rate)")
    if isinstance(value, (str, Path)) or hasattr(value, "read"):
        return read_audio(
            cast(BinaryIO, value), last_seconds=last_seconds, place=_name(value, place)
        )
    if isinstance(value, Mapping) and {"array", "sampling_rate"} <= value.keys():
        value = (value["array"], value["sampling_rate"])
    if not isinstance(value, tuple) or len(value) != 2:
        raise AudioError(place, f"is a {type(value).__name__}", FORMS)
    wave, rate = value
    if whole_number(wave) is not None and whole_number(rate) is None:
        raise AudioError(place, "has the sample rate first", "give (wave, sample_rate)")
    if isinstance(wave, (str, Path, Audio, GeneratedAudio)) or hasattr(wave, "read"):
        problem = f"has a sample rate beside a {type(wave).__name__}, which has its own"
        raise AudioError(place, problem, "leave out the sample rate")
    return as_audio(wave, rate, place)


def with_rate(wave: object, sample_rate: object) -> Prompt:
    """Return what a method's two first arguments mean."""
    known = sample_rate is None or whole_number(sample_rate) == 0
    is_array = hasattr(wave, "__array__") or isinstance(wave, list)
    if known and not (is_array and not isinstance(wave, (Audio, GeneratedAudio))):
        return wave
    return (wave, sample_rate)


def _name(value: object, place: str) -> str:
    if isinstance(value, (str, Path)):
        return str(value)
    name = getattr(value, "name", None)
    return name if isinstance(name, str) else place
