"""Sound files whose headers lie about their length, or whose ends are missing."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import soundfile

from segue.core.audio import read_audio
from segue.core.errors import AudioError
from segue.core.sound_files import _frame, _mpeg_length
from segue.data.audio_files import read_recording
from segue.data.prepare import prepare_files
from segue.data.recordings import Recording

RATE, SECONDS = 16_000, 6


def write(path: Path) -> bytes:
    """Write a sweep in the format of the suffix; return the file's bytes."""
    time = numpy.arange(SECONDS * RATE) / RATE
    soundfile.write(path, 0.3 * numpy.sin(500 * time * time), RATE)
    return path.read_bytes()


def recording(path: Path) -> Recording:
    return Recording(path, float(SECONDS), "group", "train")


def test_a_stream_of_unknown_length_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "piped.flac"
    data = bytearray(write(path))
    whole, _ = soundfile.read(path, dtype="float32")
    data[21] &= 0xF0  # the 36 bits of the sample count in STREAMINFO
    data[22:26] = bytes(4)
    path.write_bytes(data)
    numpy.testing.assert_array_equal(read_audio(path).wave, whole)
    numpy.testing.assert_array_equal(read_audio(path, first_seconds=1).wave, whole[:RATE])
    numpy.testing.assert_array_equal(read_audio(path, last_seconds=1).wave, whole[-RATE:])
    numpy.testing.assert_array_equal(read_recording(recording(path)).wave, whole)
    assert prepare_files(tmp_path, tmp_path / "out")["recordings"] == 1


@pytest.mark.parametrize("suffix", ["flac", "mp3"])
def test_of_a_cut_file_what_is_there_is_used(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut.{suffix}"
    data = write(path)
    whole = read_audio(path).wave
    path.write_bytes(data[: len(data) * 2 // 3])
    audio = read_audio(path)
    assert 0.4 * SECONDS < audio.seconds < 0.9 * SECONDS
    numpy.testing.assert_allclose(audio.wave[:RATE], whole[:RATE], atol=1e-6)
    assert any("is cut off" in note for note in audio.notes)
    tail = read_audio(path, last_seconds=1)
    assert tail.seconds == pytest.approx(1, abs=0.1)
    assert float(tail.wave.abs().max()) > 0.1
    assert read_recording(recording(path)).seconds == pytest.approx(audio.seconds, abs=0.1)


def test_mpeg_frames_are_counted_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    data = write(path)
    samples, has_table = _mpeg_length(b"ID3\x04\0\0\0\0\0\x05hello" + data)
    assert has_table and samples == pytest.approx(SECONDS * RATE, abs=4 * 1152)
    # The frame at the start holds the table: without it nothing states the length.
    size = _frame(int.from_bytes(data[:4], "big"))
    assert size is not None and _mpeg_length(data[size[0] :]) == (samples, False)


def test_a_file_that_libsndfile_would_stop_early_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mp3"
    write(path)
    monkeypatch.setattr(soundfile.SoundFile, "frames", property(lambda file: RATE))
    for read in (read_audio, lambda path: read_recording(recording(path))):
        with pytest.raises(AudioError, match="ffmpeg") as caught:
            read(path)
        assert caught.value.place == str(path)
