"""Real files and arrays, good and bad, become mono audio or an error that says what to do."""

from __future__ import annotations

import math
import resource
import struct
import tracemalloc
from pathlib import Path

import numpy
import pytest
import soundfile
import torch
import torchaudio.functional

from segue.core.audio import (
    Audio,
    check_format,
    resample,
    to_mono,
    write_audio,
)
from segue.core.errors import AudioError, OutputError
from segue.inference.inputs import prepare
from segue.sound.arrays import as_audio
from segue.sound.reading import read_audio

RATE = 16_000


def tone(seconds: float = 0.5, rate: int = RATE, pitch: float = 440.0, level: float = 0.5):  # type: ignore[no-untyped-def]
    """A sine as float32 samples ``[T]``."""
    time = numpy.arange(round(seconds * rate)) / rate
    return (level * numpy.sin(2 * math.pi * pitch * time)).astype(numpy.float32)


def pitch_of(wave: torch.Tensor, rate: int) -> float:
    """Frequency of the strongest partial in Hz."""
    spectrum = torch.fft.rfft(wave * torch.hann_window(wave.shape[0])).abs()
    return float(spectrum.argmax()) * rate / wave.shape[0]


# --- files that can be read -------------------------------------------------------------------


def test_a_file_at_another_rate_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "phone.wav"
    soundfile.write(path, tone(rate=8000), 8000)
    audio = read_audio(path)
    assert (audio.sample_rate, audio.seconds, audio.notes) == (8000, 0.5, ())
    assert audio.wave.dtype == torch.float32 and audio.wave.ndim == 1
    torch.testing.assert_close(audio.wave, torch.from_numpy(tone(rate=8000)), atol=1e-4, rtol=0)


def test_six_channels_of_24_bits_are_mixed(tmp_path: Path) -> None:
    path = tmp_path / "surround.wav"
    channels = numpy.stack([tone(level=0.1 * k) for k in range(1, 7)], axis=1)
    soundfile.write(path, channels, 48_000, subtype="PCM_24")
    audio = read_audio(path)
    expected = torch.from_numpy(channels).mean(dim=1)
    torch.testing.assert_close(audio.wave, expected, atol=1e-6, rtol=0)
    assert audio.notes == ("mixed 6 channels to mono",)


@pytest.mark.parametrize(
    ("name", "format_", "subtype", "tolerance"),
    [
        ("a.flac", "FLAC", "PCM_24", 1e-6),
        ("a.wav", "WAV", "FLOAT", 0.0),
        ("a.wav", "WAV", "PCM_U8", 0.01),
        ("a.ogg", "OGG", "VORBIS", 0.05),
        ("a.opus", "OGG", "OPUS", 0.1),
        ("a.mp3", "MP3", "MPEG_LAYER_III", 0.1),
        ("a.aiff", "AIFF", "PCM_16", 1e-4),
        ("no suffix", "WAV", "PCM_16", 1e-4),
    ],
)
def test_formats(tmp_path: Path, name: str, format_: str, subtype: str, tolerance: float) -> None:
    if not soundfile.check_format(format_, subtype):
        pytest.skip(f"this libsndfile has no {format_} {subtype}")
    path = tmp_path / name
    soundfile.write(path, tone(), RATE, format=format_, subtype=subtype)
    audio = read_audio(path)
    assert audio.sample_rate == RATE
    # Lossy codecs may add some samples of padding and delay.
    assert abs(audio.seconds - 0.5) < (0.0001 if tolerance < 0.02 else 0.1)
    assert pitch_of(audio.wave, RATE) == pytest.approx(440, abs=3)
    assert float(audio.wave[2000:6000].square().mean().sqrt()) == pytest.approx(
        0.5 / math.sqrt(2), abs=max(0.001, tolerance)
    )
    if tolerance < 0.02:
        torch.testing.assert_close(audio.wave, torch.from_numpy(tone()), atol=tolerance, rtol=0)


def test_inverted_stereo_is_not_mixed_to_silence(tmp_path: Path) -> None:
    path = tmp_path / "inverted.wav"
    soundfile.write(path, numpy.stack([tone(), -tone()], axis=1), RATE, subtype="FLOAT")
    audio = read_audio(path)
    torch.testing.assert_close(audio.wave, torch.from_numpy(tone()))
    assert audio.notes == ("took channel 1 of 2: their mean is silent",)


def test_the_loudest_of_cancelling_channels_is_taken() -> None:
    wave = torch.from_numpy(numpy.stack([-0.25 * tone(), -0.75 * tone(), tone()]))
    mono, note = to_mono(wave)
    assert torch.equal(mono, wave[2]) and "channel 3 of 3" in note


def test_silence_is_read(tmp_path: Path) -> None:
    path = tmp_path / "silence.wav"
    soundfile.write(path, numpy.zeros((RATE, 2)), RATE)
    audio = read_audio(path)
    assert not audio.wave.any() and audio.notes == ("mixed 2 channels to mono",)


@pytest.mark.parametrize("name", ["long.wav", "long.flac"])
def test_the_end_of_a_file_is_its_end(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    ramp = numpy.arange(-8000, 8000).astype(numpy.int16)
    soundfile.write(path, ramp, 8000)
    audio = read_audio(path, last_seconds=0.5)
    assert torch.equal(audio.wave, torch.from_numpy(ramp[-4000:].astype(numpy.float32)) / 32768)
    assert audio.notes == ("used the last 0.5 s of 2.0 s",)
    assert read_audio(path, last_seconds=2.0).notes == ()
    assert read_audio(path, last_seconds=60.0).wave.shape == (16_000,)


def test_the_end_of_a_two_hour_file_takes_the_memory_of_the_end(tmp_path: Path) -> None:
    """460 MB as float samples; the file is sparse, its last second is not."""
    path = tmp_path / "two hours.wav"
    last = (tone(1.0) * 32767).astype("<i2").tobytes()
    size = 2 * 3600 * RATE * 2
    header = struct.pack("<4sI4s", b"RIFF", 36 + size, b"WAVE")
    header += struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    header += struct.pack("<4sI", b"data", size)
    with path.open("wb") as file:
        file.write(header)
        file.seek(len(header) + size - len(last))
        file.write(last)
    tracemalloc.start()
    try:
        audio = read_audio(path, last_seconds=10)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert audio.wave.shape == (10 * RATE,)
    assert not audio.wave[: 9 * RATE].any()
    torch.testing.assert_close(
        audio.wave[9 * RATE :], torch.from_numpy(tone(1.0)), atol=1e-4, rtol=0
    )
    assert audio.notes == ("used the last 10.0 s of 7200.0 s",)
    assert peak < 8e6


# --- files that cannot ------------------------------------------------------------------------


def broken(folder: Path, what: str) -> Path:
    path = folder / f"{what}.wav"
    if what == "directory":
        path.mkdir()
    elif what == "empty":
        path.touch()
    elif what == "text":
        path.write_text("this is a shopping list, not audio\n" * 50)
    elif what == "binary":
        path.write_bytes(bytes(range(256)) * 20)
    elif what == "no samples":
        soundfile.write(path, numpy.zeros(0), RATE)
    elif what == "header cut":
        soundfile.write(path, tone(), RATE)
        path.write_bytes(path.read_bytes()[:30])
    elif what in ("nan", "inf"):
        wave = tone()
        wave[100:103] = float(what)
        soundfile.write(path, wave, RATE, subtype="FLOAT")
    elif what == "name":
        return folder / ("n" * 300 + ".wav")
    return path


@pytest.mark.parametrize(
    ("what", "problem", "fix"),
    [
        ("missing", "does not exist", "check the path"),
        ("directory", "is a directory", "name one audio file"),
        ("empty", "is an empty file", "name a file that holds audio"),
        ("no samples", "holds no sample", "name a file that holds audio"),
        (
            "text",
            "cannot be read as audio",
            "use a format that libsndfile reads, such as WAV, FLAC, Ogg or MP3, not MP4 or WebM",
        ),
        ("binary", "cannot be read as audio", "use a format that libsndfile reads"),
        ("header cut", "cannot be read as audio", "use a format that libsndfile reads"),
        ("nan", "holds NaN or infinite samples", "repair the file"),
        ("inf", "holds NaN or infinite samples", "repair the file"),
        ("name", "cannot be read (File name too long)", "check the path"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, what: str, problem: str, fix: str) -> None:
    path = broken(tmp_path, what)
    with pytest.raises(AudioError) as caught:
        read_audio(path)
    error = caught.value
    assert (error.place, error.problem[: len(problem)]) == (str(path), problem)
    assert error.fix.startswith(fix)
    assert "\n" not in str(error)
    with pytest.raises(AudioError, match=r"^prompt: "):
        read_audio(path, place="prompt")


# --- arrays -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda wave: wave,
        lambda wave: wave.tolist(),
        lambda wave: tuple(wave.tolist()),
        lambda wave: wave.astype(numpy.float64),
        lambda wave: wave.astype(">f4"),
        lambda wave: wave[::-1].copy()[::-1],
        lambda wave: numpy.stack([wave, wave], axis=1)[:, 0],
        lambda wave: wave[None],
        torch.from_numpy,
        lambda wave: torch.from_numpy(wave).double(),
        lambda wave: torch.from_numpy(wave).requires_grad_() * 1.0,
        lambda wave: torch.from_numpy(wave)[None],
    ],
)
def test_the_same_samples_in_any_container(make) -> None:  # type: ignore[no-untyped-def]
    audio = as_audio(make(tone()), RATE)
    assert audio.wave.dtype == torch.float32 and not audio.wave.requires_grad
    assert torch.equal(audio.wave, torch.from_numpy(tone()))
    assert (audio.sample_rate, audio.notes) == (RATE, ())


def test_half_precision_is_taken() -> None:
    half = torch.from_numpy(tone()).half()
    assert torch.equal(as_audio(half, RATE).wave, half.float())


@pytest.mark.parametrize("dtype", ["int16", "int32"])
@pytest.mark.parametrize("torch_", [False, True])
def test_integers_mean_what_they_mean_in_a_file(tmp_path: Path, dtype: str, torch_: bool) -> None:
    limits = numpy.iinfo(dtype)
    samples = numpy.array([limits.min, limits.min // 2, 0, limits.max // 4, limits.max], dtype)
    path = tmp_path / "a.wav"
    soundfile.write(path, samples, RATE, subtype="PCM_16" if dtype == "int16" else "PCM_32")
    audio = as_audio(torch.from_numpy(samples) if torch_ else samples, RATE)
    torch.testing.assert_close(audio.wave, read_audio(path).wave, atol=1e-7, rtol=0)
    assert float(audio.wave.abs().max()) == 1.0


def test_an_array_that_must_not_be_written_to_is_taken(recwarn: pytest.WarningsRecorder) -> None:
    wave = tone()
    wave.flags.writeable = False
    assert torch.equal(as_audio(wave, RATE).wave, torch.from_numpy(tone()))
    assert not recwarn.list


def test_a_sample_rate_may_be_a_numpy_integer() -> None:
    audio = as_audio(tone(), numpy.int64(RATE))
    assert audio.sample_rate == RATE and type(audio.sample_rate) is int


def test_channels_are_mixed() -> None:
    audio = as_audio(torch.tensor([[0.5, 0.25], [-0.25, 0.75]]), RATE)
    assert audio.wave.tolist() == [0.125, 0.5]
    assert audio.notes == ("mixed 2 channels to mono",)


@pytest.mark.parametrize(
    ("wave", "problem"),
    [
        (torch.zeros(2, 3, 4), r"has shape \(2, 3, 4\)"),
        (torch.zeros(65, 65), r"has shape \(65, 65\)"),
        (torch.zeros(0, 4), r"has shape \(0, 4\)"),
        (torch.tensor(0.5), r"has shape \(\)"),
        (torch.zeros(0), "holds no sample"),
        (torch.zeros(2, 0), "holds no sample"),
        ([], "holds no sample"),
        (torch.zeros(9, dtype=torch.bool), "holds torch.bool"),
        (numpy.zeros(9, bool), "holds torch.bool"),
        (torch.zeros(9, dtype=torch.complex64), "holds torch.complex64"),
        (torch.zeros(9, dtype=torch.int64), "holds torch.int64"),
        (torch.zeros(9, dtype=torch.uint8), "holds torch.uint8"),
        ([0, 1, 2], "holds torch.int64"),
        ("prompt.wav", "str is not audio"),
        (b"RIFF", "bytes is not audio"),
        (Path("prompt.wav"), "PosixPath is not audio"),
        (None, "NoneType is not audio"),
        ({"wave": [0.1]}, "dict is not audio"),
        ([[0.1, 0.2], [0.3]], "list is not audio"),
        (["a", "b"], "list is not audio"),
        (numpy.array(["a", "b"]), "ndarray is not audio"),
        (numpy.array([None, 0.5]), "ndarray is not audio"),
    ],
)
def test_what_is_no_audio_is_refused(wave: object, problem: str) -> None:
    with pytest.raises(AudioError, match=f"^prompts\\[1\\]: {problem}; give ") as caught:
        as_audio(wave, RATE, place="prompts[1]")
    assert caught.value.fix


@pytest.mark.parametrize(
    "rate", [0, -16_000, 999, 768_001, True, 16_000.5, "16000", None, float("nan")]
)
def test_what_is_no_sample_rate_is_refused(rate: object) -> None:
    with pytest.raises(AudioError) as caught:
        as_audio(tone(), rate)
    assert caught.value.place == "wave.sample_rate"
    assert caught.value.problem == f"{rate!r} is not a sample rate"
    assert "from 1000 to 768000" in caught.value.fix


# --- making it fit ----------------------------------------------------------------------------


def prepared(wave: torch.Tensor, rate: int = RATE, **limits: float) -> Audio:
    limits = {"min_seconds": 0.1, "max_seconds": 10.0} | limits
    return prepare(Audio(wave, rate), RATE, place="prompt", **limits)


def test_audio_that_fits_is_left_alone() -> None:
    wave = torch.from_numpy(tone())
    audio = prepared(wave)
    assert torch.equal(audio.wave, wave) and audio.notes == ()


def test_the_end_of_long_audio_is_kept() -> None:
    wave = torch.arange(-RATE * 2, 0) % 999 / 999 - 0.5
    audio = prepared(wave, max_seconds=0.5)
    assert torch.equal(audio.wave, wave[-RATE // 2 :])
    assert audio.notes == ("used the last 0.5 s of 2.0 s",)


def test_another_rate_is_resampled() -> None:
    audio = prepared(torch.from_numpy(tone(rate=44_100)), 44_100)
    assert audio.wave.shape == (RATE // 2,) and audio.sample_rate == RATE
    assert audio.notes == ("resampled from 44100 Hz to 16000 Hz",)
    inner = slice(200, -200)
    torch.testing.assert_close(
        audio.wave[inner], torch.from_numpy(tone())[inner], atol=2e-3, rtol=0
    )


def test_too_loud_audio_is_scaled() -> None:
    loud = torch.from_numpy(tone(level=3.0))
    audio = prepared(loud)
    assert torch.allclose(audio.wave, loud / loud.abs().max(), atol=1e-5)  # not clipped
    assert pitch_of(audio.wave, RATE) == pytest.approx(440, abs=3)
    assert audio.notes == ("scaled down from a peak of 3",)


def test_notes_are_added_to_those_there_are() -> None:
    audio = Audio(torch.from_numpy(tone(2.0, 8000, level=2.0)), 8000, ("mixed 2 channels to mono",))
    result = prepare(audio, RATE, min_seconds=0.1, max_seconds=1.0, place="prompt")
    assert len(result.notes) == 4
    assert result.notes[:3] == (
        "mixed 2 channels to mono",
        "used the last 1 s of 2.0 s",
        "resampled from 8000 Hz to 16000 Hz",
    )


def test_silence_is_allowed_and_said() -> None:
    audio = prepared(torch.zeros(RATE))
    assert not audio.wave.any() and audio.notes == ("the prompt is silent",)
    assert prepared(torch.full((RATE,), 0.001)).notes == ()


@pytest.mark.parametrize(
    ("wave", "problem", "fix"),
    [
        (torch.zeros(0), "holds no sample", "give some audio"),
        (torch.zeros(1000), "lasts 0.062 s", "give at least 0.1 s of audio"),
        (
            torch.tensor([0.0, math.nan, math.inf] * 999),
            "holds 1998 samples that are NaN",
            "repair",
        ),
    ],
)
def test_audio_that_cannot_be_used(wave: torch.Tensor, problem: str, fix: str) -> None:
    with pytest.raises(AudioError) as caught:
        prepared(wave)
    assert caught.value.place == "prompt"
    assert caught.value.problem.startswith(problem) and caught.value.fix.startswith(fix)


@pytest.mark.parametrize(
    ("source", "target"),
    [(44_101, RATE), (47_999, RATE), (11_127, RATE), (RATE, 44_101), (1001, 48_000)],
)
def test_odd_rates_are_resampled_by_a_filter_of_sane_size(
    source: int, target: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """44101 Hz has no factor in common with 16000 Hz: the exact filter would take gigabytes."""
    sizes = []
    exact = torchaudio.functional.resample

    def spy(wave: torch.Tensor, old: int, new: int) -> torch.Tensor:
        sizes.append(old * new)
        return exact(wave, old, new)

    monkeypatch.setattr(torchaudio.functional, "resample", spy)
    out = resample(torch.from_numpy(tone(1.0, source, pitch=220)), source, target)
    assert sizes[0] <= 4_000_000
    assert out.shape[0] == pytest.approx(target, rel=5e-4)
    count = min(out.shape[0], target)
    ideal = torch.from_numpy(tone(1.0, target, pitch=220))[:count]
    assert torch.nn.functional.cosine_similarity(out[:count], ideal, dim=0) > 0.999


def test_common_rates_are_resampled_exactly() -> None:
    wave = torch.randn(3000, generator=torch.Generator().manual_seed(0))
    for source in (8000, 11_025, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000, 192_000):
        for target in (8000, 16_000, 24_000, 44_100, 48_000):
            exact = torchaudio.functional.resample(wave, source, target)
            assert torch.equal(resample(wave, source, target), exact)


# --- writing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "encoding", "tolerance"),
    [
        ("a.wav", "PCM_16", 1e-4),
        ("a.WAV", "PCM_16", 1e-4),
        ("a.flac", "PCM_16", 1e-4),
        ("a.aif", "PCM_16", 1e-4),
        ("a.ogg", "VORBIS", 0.1),
        ("a.oga", "VORBIS", 0.1),
        ("a.opus", "OPUS", 0.2),
        ("a.mp3", "MPEG_LAYER_III", 0.2),
    ],
)
def test_what_is_written_can_be_read(
    tmp_path: Path, name: str, encoding: str, tolerance: float
) -> None:
    path = tmp_path / "new" / name
    write_audio(path, torch.from_numpy(tone()), RATE)
    assert soundfile.info(path).subtype == encoding
    audio = read_audio(path)
    assert (audio.sample_rate, audio.notes) == (RATE, ())
    if tolerance < 0.01:
        torch.testing.assert_close(audio.wave, torch.from_numpy(tone()), atol=tolerance, rtol=0)
    assert pitch_of(audio.wave, RATE) == pytest.approx(440, abs=3)
    assert [child.name for child in path.parent.iterdir()] == [name]


def test_long_audio_is_written_block_by_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libsndfile ends the process on a minute of Vorbis at once."""
    sizes, write = [], soundfile.SoundFile.write

    def spy(file: soundfile.SoundFile, data: numpy.ndarray) -> None:  # type: ignore[type-arg]
        sizes.append(len(data))
        write(file, data)

    monkeypatch.setattr(soundfile.SoundFile, "write", spy)
    wave = torch.from_numpy(tone(10.0))
    write_audio(tmp_path / "a.wav", wave, RATE)
    assert sum(sizes) == len(wave) and max(sizes) <= 1 << 16 < len(wave)
    torch.testing.assert_close(read_audio(tmp_path / "a.wav").wave, wave, atol=1e-4, rtol=0)


def test_samples_out_of_range_are_clipped_not_wrapped(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    write_audio(path, torch.tensor([0.0, 5.0, -5.0, 1.0, -1.0, 0.5]), RATE)
    expected = torch.tensor([0.0, 1.0, -1.0, 1.0, -1.0, 0.5])
    torch.testing.assert_close(read_audio(path).wave, expected, atol=1e-4, rtol=0)


def test_a_tensor_that_is_learnt_can_be_written(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", torch.zeros(100, requires_grad=True).double(), RATE)
    assert read_audio(tmp_path / "a.wav").wave.shape == (100,)


@pytest.mark.parametrize(
    "name",
    [
        *("a.txt", "a", "a.", "a.raw", "a.wave", ".wav", "a.json"),
        *("a.sd2", "a.htk", "a.sds", "a.wve", "a.xi"),  # leave side files, or lose the rate
    ],
)
def test_an_unknown_suffix_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for write in (check_format, lambda path: write_audio(path, torch.zeros(9), RATE)):
        with pytest.raises(AudioError) as caught:
            write(path)
        assert caught.value.place == str(path)
        assert "names no audio format" in caught.value.problem
        assert caught.value.fix == "use one of .wav, .flac, .ogg, .opus, .mp3, .aiff"
    assert list(tmp_path.iterdir()) == []


def test_a_rate_that_the_format_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot be written at 44100 Hz .*; .*use \.wav"):
        write_audio(tmp_path / "a.opus", torch.zeros(999), 44_100)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(OutputError, match=f"^{tmp_path}/file/a.wav: cannot be written") as caught:
        write_audio(tmp_path / "file" / "a.wav", torch.zeros(9), RATE)
    assert caught.value.fix == "choose a place that can be written"
    assert (tmp_path / "file").read_text() == "old"


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    """No file may grow beyond 20 kB: what a full disk looks like."""
    soundfile.write(tmp_path / "a.wav", tone(), RATE)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name in ("a.wav", "a.flac"):
        path = tmp_path / name
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        try:
            with pytest.raises(OutputError, match=f"^{path}: cannot be written") as caught:
                write_audio(path, torch.rand(50_000), RATE)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "check the free space" in caught.value.fix
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]
    assert read_audio(tmp_path / "a.wav").seconds == 0.5


@pytest.mark.parametrize("stated", [True, False])
def test_a_small_file_that_decodes_to_more_than_is_allowed_is_refused_early(
    tmp_path: Path, stated: bool
) -> None:
    path = tmp_path / "long.flac"
    soundfile.write(path, numpy.zeros((60 * RATE, 2), numpy.float32), RATE)
    if not stated:  # as written to a pipe: the number of samples in STREAMINFO is 0
        data = bytearray(path.read_bytes())
        data[21] &= 0xF0
        data[22:26] = bytes(4)
        path.write_bytes(data)
    assert path.stat().st_size < 20_000
    tracemalloc.start()
    with pytest.raises(AudioError, match=r"lasts more than 30\.0 s; give at most 30\.0 s"):
        read_audio(path, last_seconds=10, most_seconds=30)
    assert tracemalloc.get_traced_memory()[1] < 4 * 60 * RATE * 4  # 23 MB if it were decoded
    tracemalloc.stop()
    assert read_audio(path, last_seconds=10, most_seconds=60).seconds == 10


def test_many_channels_may_last_less_long(tmp_path: Path) -> None:
    path = tmp_path / "wide.flac"
    soundfile.write(path, numpy.zeros((2 * 48_000, 8), numpy.float32), 48_000)
    refusal = r"lasts more than 1\.0 s; give at most 1\.0 s at this rate with as many channels"
    with pytest.raises(AudioError, match=refusal):
        read_audio(path, most_seconds=4)
    assert read_audio(path, most_seconds=8).seconds == 2
