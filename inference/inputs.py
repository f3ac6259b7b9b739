"""Take a prompt in any of the forms that callers have it in, and bring it to a pipeline's."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import torch

from segue.core.audio import SILENCE, Audio, resample
from segue.core.errors import AudioError
from segue.core.validation import real_number, whole_number
from segue.inference.request import GeneratedAudio
from segue.sound.arrays import as_audio
from segue.sound.reading import read_audio

#: A prompt: a path, an open file, its bytes, ``(wave, sample_rate)``, or audio.
Prompt = object

LEAST_OFFSET = 0.02  # of full scale, to be removed
FORMS = "give a path, an open file, its bytes, (wave, sample_rate) or Audio"


def as_prompt(value: Prompt, place: str, last_seconds: float | None = None) -> Audio:
    """Return a prompt as mono audio at its own rate, or raise ``AudioError``.

    Args:
        value: a path; a file opened in binary mode, or its bytes; a pair, tuple or list, of a wave
            ``[T]``, ``[C, T]`` or ``[T, C]`` and its sample rate;
            ``{"array": ..., "sampling_rate": ...}``, as Hugging Face data sets have it; ``Audio``;
            or a result of one row.
        place: its name in errors.
        last_seconds: read no more than this of a file, from its end.
    """
    if isinstance(value, Audio):
        return value
    if isinstance(value, GeneratedAudio):
        if len(value.wave) == 1:
            return Audio(value.row(), value.sample_rate)
        problem = f"is a result of {len(value.wave)} rows"
        raise AudioError(place, problem, "choose one: (audio.row(0), audio.sample_rate)")
    if isinstance(value, bytes):
        value = io.BytesIO(value)
    if isinstance(value, (str, Path)) or hasattr(value, "read"):
        return read_audio(
            cast(BinaryIO, value), last_seconds=last_seconds, place=_name(value, place)
        )
    if isinstance(value, Mapping) and {"array", "sampling_rate"} <= value.keys():
        value = (value["array"], value["sampling_rate"])
    if not _is_pair(value):
        raise AudioError(place, f"is a {type(value).__name__}", FORMS)
    wave, rate = cast(Sequence[object], value)
    if whole_number(wave) is not None and whole_number(rate) is None:
        raise AudioError(place, "has the sample rate first", "give (wave, sample_rate)")
    if isinstance(wave, (str, bytes, Path, Audio, GeneratedAudio)) or hasattr(wave, "read"):
        problem = f"has a sample rate beside a {type(wave).__name__}, which has its own"
        raise AudioError(place, problem, "leave out the sample rate")
    return as_audio(wave, rate, place)


def with_rate(wave: object, sample_rate: object) -> Prompt:
    """Return what a method's two first arguments mean."""
    known = sample_rate is None or whole_number(sample_rate) == 0
    is_array = hasattr(wave, "__array__") or (isinstance(wave, list) and not _is_pair(wave))
    if not known:
        return (wave, sample_rate)
    if is_array and not isinstance(wave, (Audio, GeneratedAudio)):
        raise AudioError("prompt", "comes without its sample rate", "give (wave, sample_rate)")
    return wave


def _is_pair(value: object) -> bool:
    """Return whether a value is a wave with its rate; a list is one if only its end is a number."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        return False
    wave, rate = (real_number(each) is not None for each in value)
    return isinstance(value, tuple) or (rate and not wave)


def _name(value: object, place: str) -> str:
    if isinstance(value, (str, Path)):
        return str(value)
    name = getattr(value, "name", None)
    return name if isinstance(name, str) else place


def prepare(
    audio: Audio, sample_rate: int, *, min_seconds: float, max_seconds: float, place: str
) -> Audio:
    """Check audio, crop it to its end and resample it, as a pipeline needs it.

    Raises:
        AudioError: if it is not finite or shorter than ``min_seconds``.
    """
    wave, notes = audio.wave, list(audio.notes)
    if wave.numel() == 0:
        raise AudioError(place, "holds no sample", "give some audio")
    wrong = int((~torch.isfinite(wave)).sum())
    if wrong:
        problem = f"holds {wrong} samples that are NaN or infinite"
        raise AudioError(place, problem, "repair the file")
    if audio.seconds < min_seconds:
        fix = f"give at least {min_seconds:g} s of audio"
        raise AudioError(place, f"lasts {audio.seconds:.3f} s", fix)
    if audio.seconds > max_seconds:
        wave = wave[-round(max_seconds * audio.sample_rate) :]
        notes.append(f"used the last {max_seconds:g} s of {audio.seconds:.1f} s")
    if audio.sample_rate != sample_rate:
        wave = resample(wave, audio.sample_rate, sample_rate)
        notes.append(f"resampled from {audio.sample_rate} Hz to {sample_rate} Hz")
    peak = float(wave.abs().max())
    if peak > 1.0:
        wave = wave / peak
    deviation = float(wave.std()) if len(wave) > 1 else 0.0
    offset = dc_offset(float(wave.double().mean()), deviation)
    notes += level_notes(peak, offset)
    if offset:
        wave = wave - offset
    return Audio(wave, sample_rate, tuple(notes))


def dc_offset(mean: float, deviation: float) -> float:
    """Return what to take off a recording: its mean, if that is louder than its sound, or 0."""
    return mean if abs(mean) > max(deviation, LEAST_OFFSET) else 0.0


def level_notes(peak: float, offset: float) -> list[str]:
    """Return what a user should know of a recording's level, whose peak was ``peak``."""
    if peak < SILENCE:
        return ["the prompt is silent"]
    notes = [f"scaled down from a peak of {peak:.3g}"] if peak > 1.0 else []
    return [*notes, f"removed a DC offset of {offset:.2f}"] if offset else notes
