"""Prompts in the forms that callers have them in."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile
import torch
from tests.conftest import melody

from segue.core.audio import Audio
from segue.core.errors import AudioError
from segue.inference.inputs import as_prompt, with_rate
from segue.inference.request import GeneratedAudio

RATE = 16_000
WAVE = melody(0.2, seed=1)
ARRAY = WAVE.numpy()


class Unseekable(io.RawIOBase):
    """A file such as a pipe or a download: read once, from its start."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(buffer)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "a.wav", ARRAY, RATE, subtype="FLOAT")
    return tmp_path / "a.wav"


def result(rows: int) -> GeneratedAudio:
    wave = WAVE.expand(rows, -1)
    nothing = torch.zeros(rows, dtype=torch.long)
    return GeneratedAudio(wave, nothing + len(WAVE), RATE, nothing, {}, [()] * rows)


@pytest.mark.parametrize("kind", ["float32", "float64", "int16", "int32"])
@pytest.mark.parametrize("order", ["T", "1T", "T1", "2T", "T2"])
def test_arrays_of_any_kind_and_order_are_the_same_audio(kind: str, order: str) -> None:
    array = ARRAY.astype(kind)
    if kind.startswith("int"):
        array = (ARRAY.astype("float64") * -float(numpy.iinfo(kind).min)).round().astype(kind)
    if len(order) == 2:
        count = int(order.strip("T"))
        array = numpy.stack([array] * count, axis=order.index(str(count)))
    pairs = ((array, RATE), [array.tolist(), float(RATE)] if kind == "float64" else [array, RATE])
    for form in (*pairs, {"array": array, "sampling_rate": RATE}):
        audio = as_prompt(form, "prompt")
        assert audio.sample_rate == RATE and audio.wave.dtype == torch.float32
        torch.testing.assert_close(audio.wave, WAVE, atol=1e-4, rtol=0)


def test_files_by_path_and_open(path: Path) -> None:
    data = path.read_bytes()
    with path.open("rb") as file:
        audio = as_prompt(file, "prompt")
    forms = (path, str(path), data, io.BytesIO(data), Unseekable(data))
    for other in (as_prompt(form, "p") for form in forms):
        assert torch.equal(other.wave, WAVE) and other.sample_rate == RATE
    assert torch.equal(audio.wave, WAVE)
    assert with_rate(data, 0) is data
    end = as_prompt(io.BytesIO(data), "prompt", last_seconds=0.1)
    assert torch.equal(end.wave, WAVE[len(WAVE) // 2 :])


def test_audio_and_results_are_taken_as_they_are() -> None:
    audio = Audio(WAVE, RATE, ("note",))
    assert as_prompt(audio, "prompt") is audio
    assert torch.equal(as_prompt(result(1), "prompt").wave, WAVE)


def test_a_rate_goes_with_arrays_only() -> None:
    assert with_rate("a.wav", 0) == "a.wav"
    assert with_rate("a.wav", None) == "a.wav"
    assert with_rate("a.wav", RATE) == ("a.wav", RATE)
    assert with_rate((ARRAY, RATE), 0) == (ARRAY, RATE)
    assert with_rate([ARRAY, RATE], 0.0) == [ARRAY, RATE]
    for array in (ARRAY, WAVE, [0.0, 0.5], [ARRAY, ARRAY], [RATE, ARRAY]):
        with pytest.raises(AudioError, match=r"comes without its sample rate; give \(wave, sample"):
            with_rate(array, 0)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ((RATE, ARRAY), "has the sample rate first"),
        ((ARRAY, 16000.5), "16000.5 is not a sample rate"),
        ((ARRAY, True), "True is not a sample rate"),
        (("a.wav", RATE), "which has its own"),
        ((b"RIFF", RATE), "which has its own"),
        ((Audio(WAVE, RATE), RATE), "which has its own"),
        (result(2), "a result of 2 rows"),
        (3, "is a int; give a path"),
        (None, "is a NoneType"),
        ((ARRAY, RATE, 1), "is a tuple"),
        ({"array": ARRAY}, "is a dict"),
        (io.StringIO("text"), "mode 'rb'"),
        (io.BytesIO(b""), "seek"),
        (b"", "give a whole file"),
        (io.BytesIO(b"no audio" * 9), "cannot be read as audio .Format not recognised"),
        ((numpy.zeros((300, 200)), RATE), r"has shape .300, 200."),
        ((numpy.zeros((2, 3, 4)), RATE), "has shape"),
    ],
)
def test_others_are_refused_with_the_form_to_give(value: object, problem: str) -> None:
    with pytest.raises(AudioError, match=problem):
        as_prompt(value, "prompt")
