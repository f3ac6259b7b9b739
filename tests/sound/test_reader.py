"""Sound files whose headers lie about their length, or whose ends are missing."""

from __future__ import annotations

import ctypes
import io
import os
import sys
import tarfile
import tracemalloc
from pathlib import Path

import numpy
import pytest
import soundfile
import torch

from segue.core.errors import AudioError
from segue.data.audio_files import read_recording
from segue.data.prepare import prepare_files
from segue.data.recordings import Recording
from segue.data.scan import listen
from segue.data.sources import read_recordings
from segue.sound.mpeg import MpegFrames, find_frames, frame_of
from segue.sound.open_audio import open_audio
from segue.sound.quiet import quiet
from segue.sound.reader import SoundReader
from segue.sound.reading import read_audio

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
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(path, "a.flac")
    (member,) = read_recordings(tmp_path / "x.tar")
    assert member.seconds == SECONDS


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


def frames_in(data: bytes) -> MpegFrames:
    found = find_frames(io.BytesIO(data))
    assert found is not None
    return found


def test_mpeg_frames_are_counted_one_by_one(tmp_path: Path) -> None:
    data = write(tmp_path / "a.mp3")
    tagged = frames_in(b"ID3\x04\0\0\0\0\0\x05hello" + data)
    assert tagged.has_table and tagged.samples == pytest.approx(SECONDS * RATE, abs=4 * 1152)
    # The frame at the start holds the table: without it nothing states the length.
    size = frame_of(int.from_bytes(data[:4], "big"))
    assert size is not None
    bare = frames_in(data[size[0] :])
    assert (bare.samples, bare.has_table, bare.delay) == (tagged.samples, False, 0)


@pytest.mark.parametrize("rate", [11_025, 16_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_any_stretch_of_an_mp3_file_is_what_the_whole_has_there(
    tmp_path: Path, rate: int, channels: int, mode: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """libsndfile's own seeking is wrong by up to full scale there, and prints messages."""
    path, time = tmp_path / "a.mp3", numpy.arange(4 * rate) / rate
    noise = numpy.random.default_rng(0).normal(size=(len(time), channels))
    wave = 0.3 * numpy.sin(900 * time * time)[:, None] + 0.1 * noise * (time[:, None] % 1)
    soundfile.write(path, wave, rate, bitrate_mode=mode, compression_level=0.6)
    whole, _ = soundfile.read(path, dtype="float32", always_2d=True)
    with SoundReader(path) as sound:
        for first in (0, 1, 700, rate, 2 * rate + 77, 3 * rate + 5):
            part = sound.read(first, rate)
            numpy.testing.assert_allclose(part, whole[first : first + rate], atol=1e-6)
        numpy.testing.assert_allclose(sound.read(0, 9 * rate), whole, atol=1e-6)
    assert capfd.readouterr().err == ""


def test_an_mp3_file_without_a_table_is_read_to_its_end(tmp_path: Path) -> None:
    """Its first frames are large: libsndfile guesses a third of the length from them."""
    path, noise = tmp_path / "a.mp3", numpy.random.default_rng(0).normal(size=RATE)
    wave = 0.1 * numpy.sin(numpy.arange(SECONDS * RATE) / 9)
    wave[:RATE] = 0.2 * noise
    soundfile.write(path, wave, RATE, bitrate_mode="VARIABLE", compression_level=0)
    whole, _ = soundfile.read(path, dtype="float32")
    data = path.read_bytes()
    table, delay = frame_of(int.from_bytes(data[:4], "big")), frames_in(data).delay
    assert table is not None
    path.write_bytes(data[table.size :])
    assert soundfile.info(path).frames < 0.5 * len(whole)
    for read in (read_audio, lambda path: read_recording(recording(path))):
        audio = read(path)
        assert audio.notes == () and SECONDS <= audio.seconds < SECONDS + 0.2
        numpy.testing.assert_allclose(audio.wave[delay:][: len(whole)], whole, atol=1e-6)
    tail = read_audio(path, last_seconds=1)
    torch.testing.assert_close(tail.wave, audio.wave[-RATE:], atol=1e-6, rtol=0)
    assert prepare_files(tmp_path, tmp_path / "out")["recordings"] == 1


@pytest.mark.parametrize("stated", [0, 1, 2, 9])
@pytest.mark.parametrize("samples", [2304, RATE])
def test_an_mp3_file_that_states_too_few_frames_is_read_to_its_end(
    tmp_path: Path, stated: int, samples: int
) -> None:
    path, wave = tmp_path / "a.mp3", 0.1 * numpy.sin(numpy.arange(samples) / 9)
    soundfile.write(path, wave, RATE)
    right, data = read_audio(path), path.read_bytes()
    count = max(data.find(b"Xing"), data.find(b"Info")) + 8
    if stated < len(frames_in(data).offsets):
        path.write_bytes(data[:count] + stated.to_bytes(4, "big") + data[count + 4 :])
    for source in (path, io.BytesIO(path.read_bytes())):
        audio = read_audio(source)
        assert audio.notes == right.notes == () and len(audio.wave) == samples
        assert torch.equal(audio.wave, right.wave)


@pytest.mark.parametrize("name", ["a.flac", "a.mp3", "a.ogg"])
def test_what_is_read_depends_on_the_place_alone(tmp_path: Path, name: str) -> None:
    """In a damaged file a decoder that goes on may find something else than one that begins."""
    path = tmp_path / name
    data = bytearray(write(path))
    data[len(data) // 2 : len(data) // 2 + 300] = bytes(range(250)) + bytes(50)
    path.write_bytes(data)
    places = range(0, SECONDS * RATE, RATE // 3)
    with SoundReader(path) as sound:
        forth = [sound.read(first, RATE // 3) for first in places]
        back = [sound.read(first, RATE // 3) for first in reversed(places)]
    for one, other in zip(forth, reversed(back), strict=True):
        numpy.testing.assert_array_equal(one, other)


def test_reading_hours_takes_the_memory_of_a_block(tmp_path: Path) -> None:
    longer, peaks = tmp_path / "b.wav", []
    for length in (20, 120):
        with soundfile.SoundFile(longer, "w", 44_100, 2) as file:
            for _ in range(length):
                file.write(numpy.full((44_100, 2), 0.1, numpy.float32))
        tracemalloc.start()
        with open_audio(longer) as opened:
            samples = sum(len(block) for block in opened.blocks_at(RATE, seconds=10))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert samples == length * RATE
    assert peaks[1] < 1.2 * peaks[0]


def test_damage_that_decodes_to_far_beyond_full_scale_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "damaged.mp3"
    data = bytearray(write(path))
    start = frames_in(bytes(data)).offsets[40] + 4 + 3  # in the side information
    data[start] |= 3  # the largest gain: eight bits from the 31st on
    data[start + 1] |= 0xFC
    path.write_bytes(data)
    assert read_audio(path, first_seconds=1).wave.abs().max() < 0.4
    with pytest.raises(AudioError, match=r"is damaged: it decodes to samples of [0-9.e+]+, where"):
        read_audio(path)
    heard = listen(recording(path), 0.1)
    assert (heard.kind, heard.problem[:14]) == ("corrupt", "is damaged: it")


def test_a_file_of_which_damage_leaves_nothing_is_no_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "damaged.flac"
    data = bytearray(write(path))
    first = data.index(b"\xff\xf8")  # of the first frame
    data[first : first + 40] = bytes(40)
    path.write_bytes(data[: first + 2000])
    with pytest.raises(AudioError, match=r"is damaged: none of its 6.0 s can be read; restore it"):
        read_audio(path)


def test_what_decoders_print_of_damage_is_kept_from_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "damaged.mp3"
    data = bytearray(write(path))
    for place in range(3000, len(data), 500):
        data[place : place + 4] = b"abcd"
    path.write_bytes(data)
    soundfile.read(path)
    assert "error" in capfd.readouterr().err  # else this file tests nothing
    with quiet():
        read_audio(path)
        sys.stderr.write("python\n")
        ctypes.CDLL(None).perror(b"hidden")
        if not (child := os.fork()):
            ctypes.CDLL(None).perror(b"child")
            os._exit(0)
        os.waitpid(child, 0)
    assert "hidden" not in (err := capfd.readouterr().err)
    assert err.startswith("python\nchild: ") and err.count("\n") == 2
    ctypes.CDLL(None).perror(b"shown")
    assert capfd.readouterr().err.startswith("shown: ")
