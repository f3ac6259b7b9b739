"""Files whose headers lie, streams after one another, channels and signals with defects."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import soundfile
import torch

from segue.core.audio import Audio, pcm16, to_mono, write_audio
from segue.core.errors import AudioError
from segue.data.recordings import Recording
from segue.data.scan import listen
from segue.inference.inputs import prepare
from segue.sound.arrays import as_audio
from segue.sound.headers import corrected
from segue.sound.open_audio import open_audio
from segue.sound.reader import SoundReader
from segue.sound.reading import read_audio

RATE = 16_000
WAVE = (0.3 * numpy.sin(numpy.arange(RATE) * 0.09)).astype("float32")


def coded(kind: str, subtype: str | None = None, rate: int = RATE, seconds: float = 1.0) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, WAVE[: int(seconds * rate)], rate, format=kind, subtype=subtype)
    return file.getvalue()


def changed(kind: str, name: bytes, at: int, value: bytes, subtype: str | None = None) -> bytes:
    """Return a file with other bytes ``at`` bytes after the name of a chunk."""
    data = bytearray(coded(kind, subtype))
    start = data.index(name) + at
    data[start : start + len(value)] = value
    return bytes(data)


LIES = {
    "no size.wav": changed("WAV", b"data", 4, struct.pack("<I", 0)),
    "largest size.wav": changed("WAV", b"data", 4, struct.pack("<I", 0xFFFFFFFF)),
    "too large.wav": changed("WAV", b"data", 4, struct.pack("<I", 10**7)),
    "too small.wav": changed("WAV", b"data", 4, struct.pack("<I", 1000)),
    "too small float.wav": changed("WAV", b"data", 4, struct.pack("<I", 1000), "FLOAT"),
    "too small.wavex": changed("WAVEX", b"data", 4, struct.pack("<I", 1000)),
    "no size of a block.wav": changed("WAV", b"fmt ", 20, struct.pack("<H", 0)),
    "more.rf64": changed("RF64", b"ds64", 16, struct.pack("<Q", 10**12)),
    "more.aiff": changed("AIFF", b"COMM", 10, struct.pack(">I", 10**8)),
    "none.rf64": changed("RF64", b"ds64", 16, bytes(16)),
    "fewer.rf64": changed("RF64", b"ds64", 16, struct.pack("<Q", 1000)),
    "none.aiff": changed("AIFF", b"COMM", 10, struct.pack(">I", 0)),
    "fewer.aiff": changed("AIFF", b"COMM", 10, struct.pack(">I", 100)),
    "small chunk.aiff": changed("AIFF", b"SSND", 4, struct.pack(">I", 8)),
    "large chunk.aiff": changed("AIFF", b"SSND", 4, struct.pack(">I", 10**9)),
    "unknown.au": changed("AU", b".snd", 8, b"\xff\xff\xff\xff"),
    "none.au": changed("AU", b".snd", 8, bytes(4)),
    "fewer.au": changed("AU", b".snd", 8, struct.pack(">I", 1000)),
    "unknown.caf": changed("CAF", b"data", 4, b"\xff" * 8),
    "fewer.caf": changed("CAF", b"data", 4, struct.pack(">q", 1004)),
    "unknown.flac": changed("FLAC", b"fLaC", 21, bytes((coded("FLAC")[21] & 0xF0, 0, 0, 0, 0))),
    "fewer.flac": changed("FLAC", b"fLaC", 22, struct.pack(">I", 1000)),
    "days.flac": changed("FLAC", b"fLaC", 22, b"\xff\xff\xff\xff"),
    "one fewer.flac": changed("FLAC", b"fLaC", 22, struct.pack(">I", RATE - 1)),
    "tagged.flac": b"ID3\4"
    + bytes(5)
    + b"\x10"
    + bytes(16)
    + changed("FLAC", b"fLaC", 22, struct.pack(">I", 9)),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_about_the_length_changes_nothing(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(LIES[name])
    for source in (path, io.BytesIO(LIES[name])):
        audio = read_audio(source)
        torch.testing.assert_close(audio.wave, torch.from_numpy(WAVE), atol=1e-4, rtol=0)
    with open_audio(path) as opened:
        assert torch.equal(opened.read(5000, 100), audio.wave[5000:5100])


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (changed("WAV", b"fmt ", 12, struct.pack("<I", 0)), "cannot be read as audio"),
        (changed("WAV", b"fmt ", 12, struct.pack("<I", 7)), "sample rate of 7 Hz"),
        (changed("WAV", b"fmt ", 12, struct.pack("<I", 10**9)), "sample rate of 1000000000 Hz"),
        (changed("WAV", b"fmt ", 10, struct.pack("<H", 0)), "cannot be read as audio"),
        (changed("WAV", b"fmt ", 22, struct.pack("<H", 0)), "states 1 channels of 0 bits"),
        (changed("WAV", b"fmt ", 22, struct.pack("<H", 8)), "1 channels of 8 bits in 2 bytes"),
        (changed("WAV", b"fmt ", 22, struct.pack("<H", 32)), "1 channels of 32 bits in 2 bytes"),
        (changed("WAV", b"fmt ", 10, struct.pack("<H", 2)), "2 channels of 16 bits in 2 bytes"),
        (changed("WAVEX", b"fmt ", 22, struct.pack("<H", 24)), "1 channels of 24 bits in 2 bytes"),
        (coded("OGG", "VORBIS")[:-1], "is damaged: no part can be read"),
        (coded("MP3")[:200], "cannot be read as audio .no sound can be decoded"),
        (coded("WAV")[:44], "holds no sample"),
        (coded("WAV") * 2, "several files .* head -c 32044 FILE"),
        (coded("RF64") * 2, "several files"),
        (coded("AIFF") * 2, "several files"),
        (coded("AU") * 2, "several files"),
        (coded("CAF") * 2, "several files"),
        (coded("W64") * 2, "several files .* head -c 32104 FILE"),
        (coded("NIST") * 2, "several files .* head -c 33024 FILE"),
        (coded("VOC") * 2, "several files .* head -c 32043 FILE"),
        (coded("OGG", "VORBIS") * 2, "several Ogg streams"),
        (coded("FLAC") * 2, "several FLAC streams .* join them: ffmpeg -i FILE FILE.flac"),
        (LIES["unknown.flac"] + coded("FLAC", rate=8000), "several FLAC streams"),
        (coded("MP3") + coded("MP3", rate=8000), "changes its sample rate or number of channels"),
    ],
)
def test_headers_that_make_a_file_unusable(data: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(data)
    with pytest.raises(AudioError, match=f"^upload: .*{problem}"):
        read_audio(tmp_path / "a.wav", place="upload")  # the path is that of a copy


def test_what_follows_the_samples_is_no_sound(tmp_path: Path) -> None:
    """Chunks, tags and padding may come last; a file without samples may hold them, too."""
    notes, path = b"LIST" + struct.pack("<I", 9000) + bytes(9000), tmp_path / "a"
    odd = changed("WAV", b"data", 4, struct.pack("<I", 2 * RATE - 1))[:-1]  # not filled up
    for data in (coded("WAV") + notes, odd + notes, coded("WAV") + notes + bytes(9000)):
        path.write_bytes(data)
        assert len(read_audio(path).wave) == data.index(notes) // 2 - 22
    path.write_bytes(coded("WAV")[:40] + bytes(4) + notes)
    with pytest.raises(AudioError, match="holds no sample"):
        read_audio(path)
    for data in (coded("FLAC"), coded("FLAC") + b"TAG" + bytes(125), coded("AU"), coded("CAF")):
        path.write_bytes(data)
        assert corrected(str(path)) == (str(path), 1.0)  # there is nothing to correct


@pytest.mark.parametrize("kind", ["WAV", "RF64", "AIFF", "AU", "CAF"])
def test_of_a_cut_file_without_compression_is_said_that_it_is_cut(
    kind: str, tmp_path: Path
) -> None:
    data, path = coded(kind, "FLOAT", rate=4000, seconds=4), tmp_path / "a.wav"
    path.write_bytes(data[: len(data) // 4])
    with open_audio(path) as opened:
        assert opened.promised == pytest.approx(4, abs=0.01) and opened.length < 4000
        note = f"is cut off: it holds {opened.length / 4000:.1f} s of 4.0 s"
        assert opened.notes == read_audio(path).notes == (note,)
    heard = listen(Recording(path, 4.0, "group", "train"), 0.1)
    assert (heard.kind, heard.problem[:16]) == ("corrupt", "is cut off after")


def test_24_bits_in_blocks_of_32_are_read(tmp_path: Path) -> None:
    data = bytearray(coded("WAV", "PCM_32"))
    data[34:36] = struct.pack("<H", 24)  # bits
    (tmp_path / "a.wav").write_bytes(data)
    audio = read_audio(tmp_path / "a.wav")
    torch.testing.assert_close(audio.wave, torch.from_numpy(WAVE), atol=1e-4, rtol=0)


def test_layer_2_is_read_as_well(tmp_path: Path) -> None:
    silent = b"\xff\xfd\x44\xc0".ljust(192, b"\0")  # 64 kbit/s, 48 kHz, one channel
    (tmp_path / "a.mp2").write_bytes(50 * silent)
    assert read_audio(tmp_path / "a.mp2").seconds == pytest.approx(1.2, abs=0.03)


def test_a_wav_file_larger_than_its_header_can_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    path.write_bytes(LIES["largest size.wav"])
    with path.open("r+b") as file:  # of which the file system stores little
        file.seek(44 + 0xFFFFFFFF)
        file.write(b"more" * 2000)
    with pytest.raises(AudioError, match=r"long.wav: holds more samples than .* W64"):
        read_audio(path)


@pytest.mark.parametrize("coding", ["VORBIS", "OPUS"])
def test_chained_ogg_is_refused_instead_of_cut(coding: str, tmp_path: Path) -> None:
    """libsndfile reads the first of several streams and says nothing of the others."""
    first = coded("OGG", coding)
    second = bytearray(coded("OGG", coding))
    serial = second[14:18]
    while (at := second.find(b"OggS\0")) >= 0:  # another stream must have another number
        second[at : at + 4] = b"oGGs"
        if second[at + 14 : at + 18] == serial:
            second[at + 14 : at + 18] = b"next"
    path = tmp_path / "chain.ogg"
    path.write_bytes(first + bytes(second).replace(b"oGGs", b"OggS"))
    with pytest.raises(AudioError, match=r"chain.ogg: holds several Ogg streams .* join them"):
        read_audio(path)
    path.write_bytes(first)
    assert read_audio(path).seconds == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("coding", ["VORBIS", "OPUS"])
def test_of_a_cut_ogg_file_is_said_that_it_is_cut(coding: str, tmp_path: Path) -> None:
    path, noise = tmp_path / "a.ogg", numpy.random.default_rng(0).standard_normal(3 * RATE)
    soundfile.write(path, noise / 10, RATE, subtype=coding)
    path.write_bytes(path.read_bytes()[:-3000])
    audio = read_audio(path)
    assert 1 < audio.seconds < 3 and audio.notes == (f"is cut off after {audio.seconds:.1f} s",)
    with open_audio(path) as opened:
        assert opened.notes == audio.notes
    heard = listen(Recording(path, 3.0, "group", "train"), 0.1)
    assert heard.problem == f"is cut off after {audio.seconds:.3f} s"


def test_channels_too_loud_to_be_added_have_a_mean() -> None:
    loud = torch.full((2, 9), 3e38)
    assert torch.equal(to_mono(loud)[0], loud[0])


def test_a_format_without_places_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "phone.wav"
    soundfile.write(path, WAVE, 8000, subtype="GSM610")
    whole = read_audio(path).wave
    assert len(whole) >= len(WAVE)
    with SoundReader(path) as sound:
        assert numpy.array_equal(sound.read(3000, 500)[:, 0], whole[3000:3500].numpy())
        assert numpy.array_equal(sound.read(0, 500)[:, 0], whole[:500].numpy())


def test_channels_that_cancel_are_noted() -> None:
    wave = torch.from_numpy(WAVE)

    def note(share: float) -> str:
        return to_mono(torch.stack([wave, share * wave]))[1]

    assert note(-1.0) == "took channel 1 of 2: their mean is silent"
    assert note(-0.97).startswith("mixed 2 channels to mono: they almost cancel out")
    assert note(0.0) == note(-0.5) == "mixed 2 channels to mono"


def test_an_offset_louder_than_the_sound_is_removed() -> None:
    wave = torch.from_numpy(WAVE)

    def prepared(offset: float) -> Audio:
        return prepare(Audio(wave + offset, RATE), RATE, min_seconds=0, max_seconds=9, place="x")

    shifted = prepared(0.6)
    mean = 0.6 + float(wave.mean())
    assert shifted.notes == (f"removed a DC offset of {mean:.2f}",)
    assert torch.allclose(shifted.wave, wave - wave.mean(), atol=1e-5)
    assert prepared(0.05).notes == ()
    assert torch.equal(prepared(0.05).wave, wave + 0.05)


@pytest.mark.parametrize(
    "odd", [lambda wave: wave.to("meta"), lambda wave: wave.to_sparse()], ids=["meta", "sparse"]
)
def test_tensors_without_samples_are_refused(odd: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(AudioError, match=r"is not audio|is sparse"):
        as_audio(odd(torch.from_numpy(WAVE)), RATE)


@pytest.mark.parametrize("suffix", ["wav", "flac", "aiff"])
def test_samples_of_16_bits_survive_reading_and_writing(suffix: str, tmp_path: Path) -> None:
    samples = torch.arange(-32768, 32768, 7, dtype=torch.int16)
    write_audio(tmp_path / f"a.{suffix}", samples.float() / 32768, RATE)
    read = soundfile.read(tmp_path / f"a.{suffix}", dtype="int16")[0]
    assert numpy.array_equal(read, samples.numpy())
    # Rounded to the nearest step, not down: no offset.
    assert pcm16(torch.tensor([0.6, -0.6, 0.4]) / 32768).tolist() == [1, -1, 0]
