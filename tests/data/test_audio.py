"""Crops of recordings for what is trained on raw audio."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import soundfile
import torch
from tests.data_helpers import RATE, into_a_directory, ramp, recording, write_wave

from segue.core.audio import resample
from segue.core.errors import AudioError, DataError
from segue.data import audio_files
from segue.data.audio_crops import AudioCrops, whole_recordings
from segue.data.audio_files import decoded_blocks, open_recording
from segue.data.epochs import Share
from segue.data.recordings import Recording
from segue.sound.open_audio import OpenAudio


def test_a_batch_depends_on_the_seed_and_the_step_alone(tmp_path: Path) -> None:
    recordings = [ramp(tmp_path / f"{n}.wav", 0.5 + n / 2) for n in range(3)]

    def crops(seed: int) -> AudioCrops:
        return AudioCrops(recordings, RATE, 0.1, 8, seed)

    first = crops(3)
    batches = [first.batch(step) for step in range(5)]
    again = crops(3)
    torch.rand(7)  # the global generator plays no part
    for step in (4, 0, 2):
        assert torch.equal(again.batch(step).wave, batches[step].wave)
    assert not torch.equal(batches[0].wave, batches[1].wave)
    assert not torch.equal(crops(4).batch(0).wave, batches[0].wave)
    uncached = AudioCrops(recordings, RATE, 0.1, 8, 3, cache_bytes=0)
    assert torch.equal(uncached.batch(2).wave, batches[2].wave)


def test_crops_are_unaltered_pieces_of_recordings(tmp_path: Path) -> None:
    batch = AudioCrops([ramp(tmp_path / "a.wav", 1.0)], RATE, 0.1, 16, 0).batch(0)
    assert batch.wave.shape == (16, 1600) and batch.lengths.tolist() == [1600] * 16
    samples = (batch.wave * 32768).round()
    assert torch.equal(samples.diff(dim=1), torch.ones(16, 1599))
    starts = sorted(samples[:, 0].tolist())
    assert len(set(starts)) > 12 and {start // 1440 for start in starts} == set(range(10))
    assert samples.min() >= 0 and samples.max() < RATE


def test_the_first_and_the_last_sample_are_reached(tmp_path: Path) -> None:
    crops = AudioCrops([ramp(tmp_path / "a.wav", 12 / RATE)], RATE, 10 / RATE, 64, 0)
    starts = (crops.batch(0).wave[:, 0] * 32768).round()
    assert set(starts.tolist()) == {0.0, 1.0, 2.0}


def test_longer_recordings_contribute_in_proportion(tmp_path: Path) -> None:
    recordings = [
        recording(write_wave(tmp_path / "short.wav", 0.2, 0.25), 0.2),
        recording(write_wave(tmp_path / "long.wav", 0.6, 0.5), 0.6),
    ]
    batch = AudioCrops(recordings, RATE, 0.01, 1000, 0).batch(0)
    share = float((batch.wave[:, 0] > 0.4).float().mean())
    assert share == pytest.approx(0.75, abs=0.06)


def test_short_recordings_are_padded_and_others_resampled(tmp_path: Path) -> None:
    recordings = [
        recording(write_wave(tmp_path / "short.wav", 0.05), 0.05),
        recording(write_wave(tmp_path / "slow.wav", 0.5, rate=8000), 0.5),
    ]
    batch = AudioCrops(recordings, RATE, 0.1, 32, 0).batch(0)
    assert set(batch.lengths.tolist()) == {800, 1600}
    for wave, length in zip(batch.wave, batch.lengths.tolist(), strict=True):
        assert not wave[length:].any()
        assert wave[:length].mean() == pytest.approx(0.1, abs=0.01)


def test_unreadable_recordings_are_listed_and_skipped(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no audio")
    broken = numpy.full(RATE, numpy.nan, numpy.float32)
    soundfile.write(tmp_path / "nan.wav", broken, RATE, subtype="FLOAT")
    unscaled = numpy.full(RATE, -3e4, numpy.float32)  # meant for 16 bits
    soundfile.write(tmp_path / "loud.wav", unscaled, RATE, subtype="FLOAT")
    recordings = [
        ramp(tmp_path / "good.wav", 1.0),
        recording(tmp_path / "missing.wav", 1.0),
        recording(tmp_path / "text.wav", 1.0),
        recording(tmp_path / "nan.wav", 1.0),
        recording(tmp_path / "loud.wav", 1.0),
        recording(tmp_path / "of unknown length.wav", 0.0),
    ]
    with pytest.warns(UserWarning, match=r"of unknown length\.wav left out: is missing, empty or"):
        crops = AudioCrops(recordings, RATE, 0.1, 16, 0)
    with pytest.warns(UserWarning, match=r"wav left out: .*`segue prepare files` lists") as warned:
        batch = AudioCrops(recordings[:-1], RATE, 0.1, 16, 0).batch(0)
    assert len(warned) == 1  # of the first alone
    assert torch.equal(batch.wave, crops.batch(0).wave)
    assert batch.wave.shape == (16, 1600)
    assert crops.unreadable[str(tmp_path / "missing.wav")] == "does not exist"
    assert "cannot be read as audio" in crops.unreadable[str(tmp_path / "text.wav")]
    assert "NaN" in crops.unreadable[str(tmp_path / "nan.wav")]
    assert "samples up to 3e+04" in crops.unreadable[str(tmp_path / "loud.wav")]
    assert "missing" in crops.unreadable[str(tmp_path / "of unknown length.wav")]
    assert len(crops.unreadable) == 5


def test_a_length_that_a_list_states_wrongly_is_noticed(tmp_path: Path) -> None:
    items = [ramp(tmp_path / "a.wav", 1.0), replace(ramp(tmp_path / "b.wav", 1.0), seconds=9.0)]
    with pytest.warns(UserWarning, match=r"b.wav lasts 1.0 s, but is drawn as if it were 9.0 s"):
        assert AudioCrops(items, RATE, 0.1, 32, 0).batch(0).wave.shape == (32, 1600)


def test_unreadable_recordings_do_not_make_crops_depend_on_earlier_ones(tmp_path: Path) -> None:
    """A run that is resumed, or another rank, has not met the same damage before."""
    for name in ("a", "b"):
        wave = numpy.linspace(-0.5, 0.5, 6 * RATE, dtype=numpy.float32)
        wave[3 * RATE] = numpy.nan  # its other parts are good
        soundfile.write(tmp_path / f"{name}.wav", wave, RATE, subtype="FLOAT")
    ramp(tmp_path / "cut.flac", 2.0)
    data = (tmp_path / "cut.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.wav").write_text("no audio")
    names = ("a.wav", "b.wav", "cut.flac", "text.wav", "missing.wav")
    items = [ramp(tmp_path / "good.wav", 6.0)]
    items += [recording(tmp_path / name, 6.0) for name in names]
    whole = AudioCrops(items, RATE, 0.5, 8, 3)
    batches = [whole.batch(step) for step in range(12)]
    assert len(whole.unreadable) >= 4
    later = AudioCrops(items, RATE, 0.5, 8, 3, cache_bytes=0)
    for step in (11, 6, 7):
        assert torch.equal(later.batch(step).wave, batches[step].wave)
        half = AudioCrops(items, RATE, 0.5, 8, 3).batch(step, Share(1, 2))
        assert torch.equal(half.wave, batches[step].wave[1::2])


@pytest.mark.parametrize("seconds", [1.0, 0.0])
def test_recordings_of_which_none_can_be_read(tmp_path: Path, seconds: float) -> None:
    """Of unknown length (0) are those that a manifest without durations lists but are missing."""
    recordings = [recording(tmp_path / f"{n}.wav", seconds) for n in range(3)]
    with pytest.raises(DataError) as caught:
        AudioCrops(recordings, RATE, 0.1, 2, 0).batch(0)
    assert str(caught.value).startswith(f"recordings: cannot be read; check {tmp_path}/")


def test_a_batch_larger_than_memory_is_refused_before_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a batch of crops: .*; lower training\.batch_size"):
        AudioCrops([ramp(tmp_path / "a.wav", 1.0)], RATE, 1e4, 10**6, 0)


def test_one_pass_reads_every_sample_once(tmp_path: Path) -> None:
    recordings = [ramp(tmp_path / "a.wav", 0.25), recording(tmp_path / "no.wav", 1.0),
                  ramp(tmp_path / "b.wav", 0.1)]  # fmt: skip
    with pytest.warns(UserWarning, match=r"no.wav left out: does not exist"):
        batches = list(whole_recordings(recordings, RATE, 0.1))
    assert [int(batch.lengths) for batch in batches] == [1600, 1600, 800, 1600]
    samples = torch.cat([batch.wave[0] for batch in batches[:3]]) * 32768
    assert torch.equal(samples.round(), torch.arange(4000.0))


def test_a_decoded_recording_is_16_bit(tmp_path: Path) -> None:
    wave = decode_recording(ramp(tmp_path / "a.wav", 0.1), RATE)
    assert wave.dtype == torch.int16 and torch.equal(wave, torch.arange(1600).short())
    with pytest.raises(AudioError, match="does not exist"):
        decode_recording(recording(tmp_path / "b.wav", 1.0), RATE)


def decode_recording(item: Recording, rate: int) -> torch.Tensor:
    return torch.cat([torch.zeros(0, dtype=torch.int16), *decoded_blocks(item, rate)])


# --- parts of files ---------------------------------------------------------------------------


def tune(path: Path, seconds: float, rate: int, **options: object) -> Recording:
    """Sines that do not repeat: a wrong place would show."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = numpy.arange(round(seconds * rate)) / rate
    wave = 0.4 * numpy.sin(2 * numpy.pi * (200 * time + 20 * time**2))
    soundfile.write(path, wave.astype(numpy.float32), rate, **options)
    return recording(path, seconds)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.aiff"])
@pytest.mark.parametrize("rate", [16_000, 44_100, 22_050, 8_000])
def test_a_part_is_what_the_whole_has_there(tmp_path: Path, name: str, rate: int) -> None:
    """At the file's own rate exactly; resampled, to the accuracy of the filter."""
    item = tune(tmp_path / name, 9.3, rate)
    with open_recording(item) as opened:
        whole = opened.read(0, opened.length)
        part = opened.read(4 * rate, rate)
        torch.testing.assert_close(part, whole[4 * rate : 5 * rate], atol=1e-7, rtol=0)
        resampled = resample(whole, rate, RATE)
        assert opened.length_at(RATE) == resampled.shape[0]
        parts = [opened.read_at(RATE, second * RATE, 2 * RATE) for second in range(0, 10, 2)]
    assert torch.cat(parts).shape == resampled.shape
    assert torch.allclose(torch.cat(parts), resampled, atol=1e-5)


def test_only_what_is_needed_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = tune(tmp_path / "hour.wav", 600, RATE)
    read: list[int] = []
    of_file = OpenAudio.read

    def counted(self: OpenAudio, first: int, count: int) -> torch.Tensor:
        wave = of_file(self, first, count)
        read.append(wave.shape[0])
        return wave

    monkeypatch.setattr(OpenAudio, "read", counted)
    crops = AudioCrops([item], RATE, 0.5, 4, 0)
    crops.batch(0)
    assert 4 * RATE <= sum(read) <= 4 * 4 * RATE  # two seconds a part, at most two parts a crop


def test_the_cache_is_bounded(tmp_path: Path) -> None:
    items = [tune(tmp_path / f"{n}.wav", 20, RATE) for n in range(4)]
    most = 10 * RATE * 2
    crops = AudioCrops(items, RATE, 0.5, 8, 0, cache_bytes=most)
    free = AudioCrops(items, RATE, 0.5, 8, 0)
    for step in range(20):
        assert torch.equal(crops.batch(step).wave, free.batch(step).wave)
    assert sum(part.nbytes for part in crops._cache._parts.values()) <= most
    assert sum(part.nbytes for part in free._cache._parts.values()) > 5 * most


@pytest.mark.parametrize("size", ["small", "large"])
def test_members_of_tars_are_cropped(
    tmp_path: Path, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio_files, "READ_WHOLE", 1 << 20 if size == "small" else 0)
    item = tune(tmp_path / "a.flac", 5, RATE)
    data = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "x.tar").write_bytes(b"?" * 700 + data + b"?" * 700)
    inside = replace(item, where=tmp_path / "x.tar", offset=700, size=len(data), member="a.flac")
    plain, packed = (AudioCrops([r], RATE, 0.5, 4, 0) for r in (item, inside))
    for step in range(4):
        assert torch.equal(plain.batch(step).wave, packed.batch(step).wave)
    cut = replace(inside, size=200)
    assert decode_recording(cut, RATE).numel() < RATE  # only what is there


def test_a_stretch_and_a_channel_of_a_file(tmp_path: Path) -> None:
    both = numpy.stack([numpy.arange(RATE), -numpy.arange(RATE)], 1).astype(numpy.int16)
    soundfile.write(tmp_path / "a.wav", both, RATE)
    item = Recording(tmp_path / "a.wav", 0.25, "g", "train", start=0.5, channel=1)
    wave = decode_recording(item, RATE)
    assert torch.equal(wave, -torch.arange(RATE // 2, RATE * 3 // 4).short())
    assert item.place.endswith("a.wav@0.5s (channel 1)")
    with pytest.raises(AudioError, match="has no channel 2"):
        decode_recording(replace(item, channel=2), RATE)
    soundfile.write(tmp_path / "mono.wav", both[:, 0], RATE)
    with pytest.raises(AudioError, match="has no channel 1"):
        decode_recording(replace(item, where=tmp_path / "mono.wav"), RATE)
    late = replace(item, start=2.0)
    with pytest.raises(AudioError, match="holds no sample"):
        decode_recording(late, RATE)


def test_ranks_decode_their_own_rows_only(tmp_path: Path) -> None:
    items = [tune(tmp_path / f"{n}.wav", 2, RATE) for n in range(12)]
    whole = AudioCrops(items, RATE, 0.5, 8, 3)
    parts = [AudioCrops(items, RATE, 0.5, 8, 3) for _ in range(2)]
    batch = whole.batch(5)
    for index, part in enumerate(parts):
        assert torch.equal(part.batch(5, Share(index, 2)).wave, batch.wave[index::2])
    assert all(len(part._cache._parts) <= 4 for part in parts)


@pytest.mark.parametrize("harm", [Path.unlink, into_a_directory])
def test_a_recording_that_vanishes_is_told(tmp_path: Path, harm: Callable[[Path], object]) -> None:
    """It could be read before: in its place, others would be learnt from unnoticed."""
    items = [tune(tmp_path / f"{n}.wav", 3, RATE) for n in range(3)]
    crops = AudioCrops(items, RATE, 0.5, 4, 0, cache_bytes=0)
    before = crops.batch(1)
    whole = {item.path: item.path.read_bytes() for item in items}
    for path in whole:
        harm(path)
    with pytest.raises(DataError) as caught:
        crops.batch(1)
    assert Path(caught.value.place) in whole
    assert caught.value.problem.startswith("could be read before and cannot any more (")
    assert "put it back" in caught.value.fix
    for path, data in whole.items():
        if path.is_dir():
            path.rmdir()
        path.write_bytes(data)
    assert torch.equal(crops.batch(1).wave, before.wave)


def test_a_pass_over_recordings_that_vanish_is_told(tmp_path: Path) -> None:
    items = [recording(tmp_path / f"{n}.wav", 1.0) for n in range(3)]
    with pytest.raises(DataError, match=r"recordings: cannot be read; check .*: does not exist"):
        list(whole_recordings(items, RATE, 0.1))
