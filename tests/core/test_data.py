"""From recordings to batches: what is listed, cropped, tokenized, stored and refused."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from segue.core.data import token_store
from segue.core.data.audio_crops import AudioCrops, decode_recording, whole_recordings
from segue.core.data.manifest import Recording, Split, load_recordings
from segue.core.data.recipe import read_rows, write_manifest
from segue.core.data.token_store import TokenCrops, TokenStore, common_samples, write_store
from segue.core.errors import AudioError, DataError, OutputError
from segue.core.generation import window_frames
from segue.core.interfaces import Tokenizer, Tokens
from segue.core.options import TokenizerOptions
from segue.core.spec import SliceSpec, StageSpec, TokenSpec

RATE = 16_000


def write_wave(path: Path, seconds: float, level: float = 0.1, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, numpy.full(round(seconds * rate), level, numpy.float32), rate)
    return path


def manifest(folder: Path, *lines: str) -> Path:
    path = folder / "manifest.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def paths(recordings: Sequence[Recording]) -> list[str]:
    return sorted(recording.path.name for recording in recordings)


# --- lists of recordings ----------------------------------------------------------------------


def test_a_folder_is_searched_and_its_folders_are_groups(tmp_path: Path) -> None:
    for speaker in range(30):
        for take in range(2):
            write_wave(tmp_path / f"speaker{speaker}" / f"{speaker}-{take}.wav", 0.1)
    write_wave(tmp_path / "speaker0" / "deeper" / "UPPER.FLAC", 0.2)
    (tmp_path / "speaker0" / "notes.txt").write_text("no audio")
    (tmp_path / "speaker1" / "broken.wav").write_text("no audio either")
    train, valid = load_recordings(tmp_path, "train"), load_recordings(tmp_path, "valid")
    assert len(train) + len(valid) == 61
    groups = [{recording.group for recording in split} for split in (train, valid)]
    assert not groups[0] & groups[1] and len(groups[0] | groups[1]) == 31
    assert len(groups[1]) == 1  # one of twenty
    flac = next(r for r in train + valid if r.path.suffix == ".FLAC")
    assert flac.group == "speaker0/deeper" and flac.seconds == pytest.approx(0.2)
    assert {r.split for r in train} == {"train"} and {r.split for r in valid} == {"valid"}


def test_in_a_flat_folder_every_file_is_a_group(tmp_path: Path) -> None:
    for number in range(5):
        write_wave(tmp_path / f"{number}.wav", 0.1)
    train, valid = load_recordings(tmp_path, "train"), load_recordings(tmp_path, "valid")
    assert (len(train), len(valid)) == (4, 1)
    assert sorted(r.group for r in train + valid) == list("01234")


def test_the_split_does_not_depend_on_what_else_there_is(tmp_path: Path) -> None:
    """A moved folder splits alike: groups are ranked by a hash of their names."""
    for name in ("here", "there"):
        for group in range(8):
            write_wave(tmp_path / name / f"g{group}" / "a.wav", 0.1)
    held = [load_recordings(tmp_path / name, "valid")[0].group for name in ("here", "there")]
    assert held[0] == held[1]


def test_hidden_files_are_no_recordings(tmp_path: Path) -> None:
    """Such as the temporary file of a run that was killed while it wrote one."""
    for name in ("a.wav", "b.wav", ".tmp-x.wav", "._a.wav", ".trash/c.wav"):
        write_wave(tmp_path / name, 0.1)
    found = load_recordings(tmp_path, "train") + load_recordings(tmp_path, "valid")
    assert paths(found) == ["a.wav", "b.wav"]


def test_a_single_recording_is_for_training(tmp_path: Path) -> None:
    write_wave(tmp_path / "a.wav", 0.1)
    assert len(load_recordings(tmp_path, "train")) == 1
    with pytest.raises(DataError, match="holds no recording of the split 'valid'"):
        load_recordings(tmp_path, "valid")


def test_a_manifest_says_what_it_says(tmp_path: Path) -> None:
    write_wave(tmp_path / "audio" / "b.wav", 0.25)
    path = manifest(
        tmp_path,
        "path,split,speaker,duration_s,comment",
        'audio/a.flac,train,s1,2.5,"with, comma"',
        "audio/b.wav,valid,s2,,",
        "",
        f"{tmp_path}/audio/b.wav,,s3,1,",
    )
    train, valid = load_recordings(path, "train"), load_recordings(path, "valid")
    assert train[0] == Recording(tmp_path / "audio" / "a.flac", 2.5, "s1", "train")
    assert train[1] == Recording(tmp_path / "audio" / "b.wav", 1.0, "s3", "train")
    assert valid == [Recording(tmp_path / "audio" / "b.wav", 0.25, "s2", "valid")]


def test_group_outranks_speaker_and_the_file_name_stands_in(tmp_path: Path) -> None:
    path = manifest(tmp_path, "path,group,speaker,split", "a.wav,g,s,train", "b.wav,,s,train",
                    "c.wav,,,train")  # fmt: skip
    assert [r.group for r in load_recordings(path, "train")] == ["g", "s", "c"]


def test_a_manifest_without_a_split_holds_out_groups(tmp_path: Path) -> None:
    lines = [f"{s}-{take}.wav,speaker{s},1" for s in range(45) for take in range(3)]
    path = manifest(tmp_path, "path,speaker,duration_s", *lines)
    train, valid = load_recordings(path, "train"), load_recordings(path, "valid")
    assert not {r.group for r in train} & {r.group for r in valid}
    assert len(valid) == 2 * 3 and len(train) == 43 * 3


def test_a_spreadsheet_s_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("path,duration_s\na.wav,1\nb.wav,1\n", encoding="utf-8-sig")
    assert len(load_recordings(path, "train")) == 1
    assert read_rows(path, ["path"])[1]["path"] == "b.wav"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path,split", "a.wav,train", "", "b.wav,test"], "line 4: split 'test' is unknown; write"),
        (["path,duration_s", "a.wav,1", "b.wav,long"], "line 3: duration_s 'long' is no number"),
        (["path,duration_s", "a.wav,-1"], "line 2: duration_s -1 is no length; give seconds"),
        (["path,duration_s", "a.wav,nan"], "line 2: duration_s nan is no length; give seconds"),
        (["path,duration_s", "a.wav,inf"], "line 2: duration_s inf is no length; give seconds"),
        (["path,duration_s", ",1"], "line 2: names no path; fill the column"),
        (["split,path", "train"], "line 2: names no path; fill the column"),
        (["path,x,split", '"a\n.wav",1,train', "b,1,c"], "line 4: split 'c' is unknown"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, lines: list[str], message: str) -> None:
    path = manifest(tmp_path, *lines)
    with pytest.raises(DataError) as caught:
        load_recordings(path, "train")
    assert str(caught.value).startswith(f"{path}, {message}")


def test_sources_that_cannot_be_used(tmp_path: Path) -> None:
    binary = tmp_path / "audio.csv"
    binary.write_bytes(bytes(range(256)))
    (tmp_path / "empty").mkdir()
    cases = {
        tmp_path / "missing": "does not exist; name a folder of audio or a CSV manifest",
        tmp_path / "empty": "holds no recording of the split 'train'; add audio (.aif",
        binary: "cannot be read (",
        manifest(tmp_path, "file,split", "a.wav,train"): "has no column 'path'; add a header",
    }
    for source, message in cases.items():
        with pytest.raises(DataError) as caught:
            load_recordings(source, "train")
        assert str(caught.value).startswith(f"{source}: {message}")
    only_train = manifest(tmp_path, "path,split,duration_s", "a.wav,train,1")
    with pytest.raises(DataError, match=r"split 'valid'; .* or rows with split=valid$"):
        load_recordings(only_train, "valid")
    with pytest.raises(DataError, match="holds no recording of the split 'train'"):
        load_recordings(manifest(tmp_path, "path,split"), "train")


def test_a_recipe_s_manifest_can_be_loaded(tmp_path: Path) -> None:
    row = {"path": "/data/ä, b.wav", "split": "train", "group": "g", "duration_s": 1.5}
    path = write_manifest(tmp_path / "new" / "manifest.csv", [row])
    assert load_recordings(path, "train") == [Recording(Path("/data/ä, b.wav"), 1.5, "g", "train")]
    with pytest.raises(DataError, match="lacks the column 'label'; check the manifest"):
        read_rows(path, ["path", "label"])
    with pytest.raises(DataError, match="does not exist; name the folder"):
        read_rows(tmp_path / "none.csv", [])


# --- crops of audio ---------------------------------------------------------------------------


def recording(path: Path, seconds: float, group: str = "g") -> Recording:
    return Recording(path, seconds, group, "train")


def ramp(path: Path, seconds: float) -> Recording:
    """A recording whose every sample tells where it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, numpy.arange(round(seconds * RATE), dtype=numpy.int16), RATE)
    return recording(path, seconds)


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
    assert len(set(samples[:, 0].tolist())) > 12
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
    recordings = [
        ramp(tmp_path / "good.wav", 1.0),
        recording(tmp_path / "missing.wav", 1.0),
        recording(tmp_path / "text.wav", 1.0),
        recording(tmp_path / "nan.wav", 1.0),
        recording(tmp_path / "of unknown length.wav", 0.0),
    ]
    crops = AudioCrops(recordings, RATE, 0.1, 16, 0)
    batch = crops.batch(0)
    assert batch.wave.shape == (16, 1600)
    assert crops.unreadable[str(tmp_path / "missing.wav")] == "does not exist"
    assert "cannot be read as audio" in crops.unreadable[str(tmp_path / "text.wav")]
    assert "NaN" in crops.unreadable[str(tmp_path / "nan.wav")]
    assert "missing" in crops.unreadable[str(tmp_path / "of unknown length.wav")]
    assert len(crops.unreadable) == 4


@pytest.mark.parametrize("seconds", [1.0, 0.0])
def test_recordings_of_which_none_can_be_read(tmp_path: Path, seconds: float) -> None:
    """Of unknown length (0) are those that a manifest without durations lists but are missing."""
    recordings = [recording(tmp_path / f"{n}.wav", seconds) for n in range(3)]
    with pytest.raises(DataError) as caught:
        AudioCrops(recordings, RATE, 0.1, 2, 0).batch(0)
    assert str(caught.value).startswith(f"recordings: cannot be read; check {tmp_path}/")


def test_one_pass_reads_every_sample_once(tmp_path: Path) -> None:
    recordings = [ramp(tmp_path / "a.wav", 0.25), recording(tmp_path / "no.wav", 1.0),
                  ramp(tmp_path / "b.wav", 0.1)]  # fmt: skip
    batches = list(whole_recordings(recordings, RATE, 0.1))
    assert [int(batch.lengths) for batch in batches] == [1600, 1600, 800, 1600]
    samples = torch.cat([batch.wave[0] for batch in batches[:3]]) * 32768
    assert torch.equal(samples.round(), torch.arange(4000.0))


def test_a_decoded_recording_is_16_bit(tmp_path: Path) -> None:
    wave = decode_recording(ramp(tmp_path / "a.wav", 0.1), RATE)
    assert wave.dtype == torch.int16 and torch.equal(wave, torch.arange(1600).short())
    with pytest.raises(AudioError, match="does not exist"):
        decode_recording(recording(tmp_path / "b.wav", 1.0), RATE)


# --- stores of tokens -------------------------------------------------------------------------
# Recordings tell group and time in their samples; the fake tokenizers read them off.

STEP = 0.02  # the level changes so often
SCALE = 8000
GROUP = 1000  # steps per group


class ClockOptions(TokenizerOptions):
    sample_rate: int = RATE
    frame_rate: int = 50
    num_levels: int = 1

    def spec(self) -> TokenSpec:
        return TokenSpec(self.sample_rate, Fraction(self.frame_rate), self.num_levels, SCALE)


class Clock(Tokenizer):
    """Every level's id is the step in which its frame begins."""

    config: ClockOptions
    needs = "none"
    calls = 0

    def encode(self, wave: torch.Tensor, lengths: torch.Tensor) -> Tokens:
        self.calls += 1
        size = self.spec.frame_size
        assert int(lengths.max()) % size == 0
        samples = wave[:, size // 8 :: size]  # inside the frame's first step
        ids = (samples * SCALE).round().long()[:, None].expand(-1, self.spec.num_levels, -1)
        return Tokens(ids, lengths // size)


def clock(**options: int) -> Clock:
    made = Clock(ClockOptions(**options))
    made.seal("clock.v1")
    return made


def clocks(semantic_rate: int = RATE) -> dict[str, Tokenizer]:
    return {
        "semantic": clock(frame_rate=25, sample_rate=semantic_rate),
        "acoustic": clock(frame_rate=50, num_levels=4),
    }


def timed(folder: Path, group: int, name: str, first: int, steps: float) -> Recording:
    """A recording of a group that holds the steps from ``first`` on."""
    samples = numpy.arange(round(steps * STEP * RATE)) // round(STEP * RATE)
    path = folder / f"{name}.wav"
    soundfile.write(path, (group * GROUP + first + samples) / SCALE, RATE, subtype="FLOAT")
    return Recording(path, steps * STEP, f"group{group}", "train")


@pytest.fixture
def recordings(tmp_path: Path) -> dict[Split, list[Recording]]:
    folder = tmp_path / "audio"
    folder.mkdir()
    return {
        "train": [
            timed(folder, 0, "a", 0, 120),
            timed(folder, 1, "b", 0, 30.7),
            timed(folder, 1, "c", 100, 25),
            timed(folder, 2, "too short", 0, 1.9),
            recording(folder / "missing.wav", 1.0),
            timed(folder, 3, "d", 0, 12),
            timed(folder, 1, "e", 200, 44.3),
        ],
        "valid": [timed(folder, 4, "f", 0, 61), timed(folder, 5, "g", 0, 20)],
    }


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_store, "SHARD_RECORDINGS", 3)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def bound(store: TokenStore, text: str, **changes: object) -> SliceSpec:
    """A slice of the store's own tokens: ``semantic`` or ``acoustic 0 2``."""
    stream, *levels = text.split()
    spec = store.streams[stream]
    start, stop = map(int, levels or (0, spec.num_levels))
    values = {"codebook_size": spec.codebook_size, "frame_rate": spec.frame_rate,
              "fingerprint": spec.fingerprint} | changes  # fmt: skip
    return SliceSpec(stream, start, stop, **values)  # type: ignore[arg-type]


def stage(store: TokenStore, target: str, *given: str) -> StageSpec:
    return StageSpec("fine", bound(store, target), tuple(bound(store, text) for text in given))


def test_a_store_holds_every_recording_s_tokens(
    tmp_path: Path, recordings: dict[Split, list[Recording]]
) -> None:
    told: list[tuple[str, int, int]] = []
    directory = write_store(
        tmp_path / "tokens", clocks(), recordings, lambda *what: told.append(what)
    )
    assert told == [("train", 3, 7), ("train", 6, 7), ("train", 7, 7), ("valid", 2, 2)]
    assert [path.name for path in sorted(directory.glob("*.safetensors"))] == [
        "train-00000.safetensors",
        "train-00001.safetensors",
        "train-00002.safetensors",
        "valid-00000.safetensors",
    ]
    store = TokenStore(directory, "train")
    assert {g: len(r) for g, r in store.groups.items()} == {"group0": 1, "group1": 3, "group3": 1}
    # Cut to whole frames of both streams: 30.7 steps of 20 ms are 15 frames of 40 ms.
    frames = [(r["semantic"].shape[1], r["acoustic"].shape[1]) for r in store.recordings]
    assert frames == [(60, 120), (15, 30), (12, 24), (6, 12), (22, 44)]
    third = store.recordings[2]
    assert third["semantic"][0].tolist() == list(range(1100, 1124, 2))
    assert [row.tolist() for row in third["acoustic"]] == [list(range(1100, 1124))] * 4
    skipped = json.loads((directory / "skipped.json").read_text())
    assert {Path(path).name: why for path, why in skipped.items()} == {
        "missing.wav": "does not exist",
        "too short.wav": "shorter than one frame",
    }
    valid = TokenStore(directory, "valid")
    assert [r["semantic"].shape[1] for r in valid.recordings] == [30, 10]


@pytest.mark.parametrize("semantic_rate", [8000, 24_000])
def test_tokenizers_of_different_sample_rates_stay_aligned(
    tmp_path: Path, semantic_rate: int
) -> None:
    # Low levels only: resampling alters a constant by a part in a thousand.
    items: dict[Split, list[Recording]] = {
        "train": [timed(tmp_path, 0, f"{steps}", 0, steps) for steps in (180, 30.7, 99.9)]
    }
    store = TokenStore(write_store(tmp_path / "t", clocks(semantic_rate), items), "train")
    for entry in store.recordings:
        assert torch.equal(entry["semantic"][0], entry["acoustic"][0, ::2])


def test_a_codec_is_given_audio_at_its_own_rate(
    tmp_path: Path, recordings: dict[Split, list[Recording]]
) -> None:
    """Not what is left of it at the rate of a narrower semantic tokenizer, as that is not what it
    is given in a pipeline."""
    alone = {"acoustic": clock(frame_rate=50, num_levels=4)}
    items: dict[Split, list[Recording]] = {"train": recordings["train"][:3]}
    expected = TokenStore(write_store(tmp_path / "alone", alone, items), "train")
    found = TokenStore(write_store(tmp_path / "both", clocks(8000), items), "train")
    for ours, theirs in zip(found.recordings, expected.recordings, strict=True):
        frames = ours["acoustic"].shape[1]
        assert torch.equal(ours["acoustic"], theirs["acoustic"][:, :frames])


@pytest.mark.parametrize(
    ("rate", "frame_rates", "samples"),
    [
        (16_000, (25, 50), 640),
        (16_000, (50,), 320),
        (22_050, (50, 25), 882),
        (22_050, (50, 100), 441),  # a frame of 220.5 samples ends on a whole one every other time
        (24_000, (50, Fraction(75, 2)), 1920),
    ],
)
def test_common_samples_hold_whole_frames_of_all(
    rate: int, frame_rates: tuple[Fraction | int, ...], samples: int
) -> None:
    specs = [TokenSpec(16_000, Fraction(frame_rate), 1, 9) for frame_rate in frame_rates]
    assert common_samples(specs, rate) == samples
    for frame_rate in frame_rates:
        assert (samples * Fraction(frame_rate) / rate).denominator == 1


def test_long_recordings_are_cut_at_whole_frames(
    tmp_path: Path, recordings: dict[Split, list[Recording]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = contents(write_store(tmp_path / "whole", clocks(), recordings))
    monkeypatch.setattr(token_store, "MAX_PIECE_SECONDS", 0.33)
    tokenizers = clocks()
    assert contents(write_store(tmp_path / "pieces", tokenizers, recordings)) == whole
    assert tokenizers["acoustic"].calls > 12  # type: ignore[attr-defined]


def test_a_deleted_shard_alone_is_written_again(
    tmp_path: Path, recordings: dict[Split, list[Recording]]
) -> None:
    directory = write_store(tmp_path / "tokens", clocks(), recordings)
    before = contents(directory)
    stamps = {path: path.stat().st_mtime_ns for path in directory.glob("*.safetensors")}
    lost = directory / "train-00001.safetensors"
    lost.unlink()
    tokenizers = clocks()
    write_store(directory, tokenizers, recordings)
    assert contents(directory) == before
    assert tokenizers["semantic"].calls == 1  # type: ignore[attr-defined]
    for path, stamp in stamps.items():
        assert (path.stat().st_mtime_ns == stamp) == (path != lost)


def test_an_interrupted_run_goes_on_where_it_was(
    tmp_path: Path, recordings: dict[Split, list[Recording]]
) -> None:
    whole = contents(write_store(tmp_path / "whole", clocks(), recordings))

    def stop(split: str, done: int, total: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "tokens", clocks(), recordings, stop)
    with pytest.raises(DataError, match="holds 2 of 3 shards of the split 'train'; run `segue"):
        TokenStore(tmp_path / "tokens", "train")
    assert contents(write_store(tmp_path / "tokens", clocks(), recordings)) == whole


def test_a_run_that_was_killed_leaves_no_half_shard(
    tmp_path: Path, recordings: dict[Split, list[Recording]]
) -> None:
    directory = write_store(tmp_path / "tokens", clocks(), recordings)
    (directory / ".tmp-abc.safetensors").write_bytes(b"half")
    assert len(TokenStore(directory, "train").recordings) == 5


def renamed(items: dict[Split, list[Recording]]) -> dict[Split, list[Recording]]:
    return {s: [Recording(r.path, r.seconds, "x" + r.group, s) for r in items[s]] for s in items}


@pytest.mark.parametrize(
    "other",
    [
        lambda items: (clocks() | {"semantic": clock(frame_rate=10)}, items),
        lambda items: ({"acoustic": clock(frame_rate=50, num_levels=4)}, items),
        lambda items: (clocks(), {"train": items["train"][:-1], "valid": items["valid"]}),
        lambda items: (clocks(), {"train": items["train"][::-1], "valid": items["valid"]}),
        lambda items: (clocks(), renamed(items)),
    ],
)
def test_a_store_of_other_tokenizers_or_recordings_is_not_added_to(
    tmp_path: Path,
    recordings: dict[Split, list[Recording]],
    other: Callable[[dict[Split, list[Recording]]], tuple[dict, dict]],  # type: ignore[type-arg]
) -> None:
    directory = write_store(tmp_path / "tokens", clocks(), recordings)
    before = contents(directory)
    with pytest.raises(DataError) as caught:
        write_store(directory, *other(recordings))
    assert caught.value.place == str(directory)
    assert caught.value.problem == "holds tokens of other tokenizers or recordings"
    assert "choose another directory" in caught.value.fix
    assert contents(directory) == before


def test_a_data_set_may_move(tmp_path: Path, recordings: dict[Split, list[Recording]]) -> None:
    directory = write_store(tmp_path / "tokens", clocks(), recordings)
    (tmp_path / "audio").rename(tmp_path / "elsewhere")
    moved = {
        split: [Recording(tmp_path / "elsewhere" / r.path.name, r.seconds, r.group, r.split)
                for r in items]
        for split, items in recordings.items()
    }  # fmt: skip
    tokenizers = clocks()
    write_store(directory, tokenizers, moved)
    assert tokenizers["semantic"].calls == 0  # type: ignore[attr-defined]


def test_a_full_disk_is_told(tmp_path: Path, recordings: dict[Split, list[Recording]]) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # bytes of any one file
    try:
        with pytest.raises(OutputError, match=r"train-00000\.safetensors: cannot be written"):
            write_store(tmp_path / "tokens", clocks(), recordings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "tokens").glob("*.safetensors"))


def damage(directory: Path, what: str) -> Path:
    shard, header = directory / "train-00001.safetensors", directory / "store.json"
    if what == "cut":
        shard.write_bytes(shard.read_bytes()[:-20])
    elif what == "text":
        shard.write_text("no tokens")
    elif what == "no metadata":
        save_file({"semantic": torch.zeros(1, 3)}, shard)
    elif what == "no tensors":
        kept = [{"name": "a", "group": "g", "frames": {"semantic": 3}}]
        save_file({}, shard, {"recordings": json.dumps(kept)})
    elif what == "header cut":
        header.write_text(header.read_text()[:30])
    elif what == "header list":
        header.write_text("[]")
    elif what == "version":
        header.write_text(header.read_text().replace('"format_version": 1', '"format_version": 2'))
    return header if what.startswith(("header", "version")) else shard


@pytest.mark.parametrize("what", ["cut", "text", "no metadata", "no tensors"])
def test_a_damaged_shard_is_named(
    tmp_path: Path, recordings: dict[Split, list[Recording]], what: str
) -> None:
    directory = write_store(tmp_path / "tokens", clocks(), recordings)
    shard = damage(directory, what)
    with pytest.raises(DataError) as caught:
        TokenStore(directory, "train")
    assert caught.value.place == str(shard)
    assert "cannot be read" in caught.value.problem and "delete it" in caught.value.fix
    shard.unlink()
    write_store(directory, clocks(), recordings)  # what the message advises
    assert len(TokenStore(directory, "train").recordings) == 5


@pytest.mark.parametrize(
    ("what", "problem"),
    [("header cut", "cannot be read"), ("header list", "cannot be read"), ("version", "version 2")],
)
def test_a_damaged_header_is_named(
    tmp_path: Path, recordings: dict[Split, list[Recording]], what: str, problem: str
) -> None:
    directory = write_store(tmp_path / "tokens", clocks(), recordings)
    header = damage(directory, what)
    for use in (
        lambda: TokenStore(directory, "train"),
        lambda: write_store(directory, clocks(), recordings),
    ):
        with pytest.raises(DataError) as caught:
            use()
        assert caught.value.place == str(header) and problem in caught.value.problem


def test_stores_that_lack_something(
    tmp_path: Path, recordings: dict[Split, list[Recording]]
) -> None:
    with pytest.raises(DataError, match="is no token store; run `segue tokenize` first"):
        TokenStore(tmp_path, "train")
    directory = write_store(tmp_path / "tokens", clocks(), {"train": recordings["train"][:3]})
    with pytest.raises(DataError, match="holds 0 of 0 shards of the split 'valid'"):
        TokenStore(directory, "valid")
    useless = {"train": recordings["train"][3:5]}
    directory = write_store(tmp_path / "useless", clocks(), useless)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"holds no token of the split 'train'; see .*skipped"):
        TokenStore(directory, "train")


# --- crops of tokens --------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path, recordings: dict[Split, list[Recording]]) -> TokenStore:
    return TokenStore(write_store(tmp_path / "tokens", clocks(), recordings), "train")


@pytest.mark.parametrize(
    ("target", "given"),
    [
        ("acoustic 0 2", ("semantic",)),
        ("semantic", ("acoustic 1 3",)),
        ("acoustic 2 4", ("semantic", "acoustic 0 2")),
        ("acoustic 0 4", ()),
    ],
)
def test_crops_of_all_slices_are_aligned_and_of_one_group(
    store: TokenStore, target: str, given: tuple[str, ...]
) -> None:
    spec = stage(store, target, *given)
    parts = (spec.target, *spec.given)
    slowest = min(part.frame_rate for part in parts)
    crops = TokenCrops(store, spec, 0.5, 40, 0)
    for step in range(5):
        batch = crops.batch(step)
        assert len(batch.given) == len(given)
        for row in range(40):
            slices = [batch.target.row(row), *(part.row(row) for part in batch.given)]
            times = []
            for part, tokens in zip(parts, slices, strict=True):
                assert tokens.dtype == torch.int64 and tokens.shape[0] == part.num_levels
                times.append(tokens[0, :: int(part.frame_rate / slowest)])
            assert all(torch.equal(times[0], other) for other in times[1:])
            assert len(set((times[0] // GROUP).tolist())) == 1


def test_short_recordings_are_joined_to_others_of_their_group(store: TokenStore) -> None:
    """Group 1 holds 49 slow frames in three recordings, the longest of 22."""
    crops = TokenCrops(store, stage(store, "semantic"), 1.6, 64, 0)
    batch = crops.batch(0)
    orders = set()
    for row in batch.target.rows():
        time = row[0]
        if int(time[0]) // GROUP == 1:
            assert row.shape[1] == 40
            jumps = (time.diff() != 2).nonzero()[:, 0]
            assert 1 <= len(jumps) <= 2  # recordings are whole but for the first and the last
            orders.add(tuple((time[[0, *(jumps + 1).tolist()]] % GROUP // 100).tolist()))
            assert len(time.unique()) == 40
    assert len(orders) > 3  # in random order


def test_ends_are_where_recordings_end_and_not_where_crops_do(store: TokenStore) -> None:
    batch = TokenCrops(store, stage(store, "semantic"), 1.6, 64, 0).batch(0)
    assert batch.ends is not None and batch.ends.shape == batch.target.mask.shape
    sizes = {int(r["semantic"][0, 0]): r["semantic"].shape[1] for r in store.recordings}
    last = {start + 2 * (size - 1) for start, size in sizes.items()}  # a clock's last tick
    for row, ends in zip(batch.target.rows(), batch.ends, strict=True):
        wanted = [int(token) in last for token in row[0]]
        assert ends[: row.shape[1]].tolist() == wanted
        assert not ends[row.shape[1] :].any()
    assert batch.ends.any() and not batch.ends[:, -1].all()


def test_a_group_shorter_than_a_crop_is_taken_whole(store: TokenStore) -> None:
    batch = TokenCrops(store, stage(store, "semantic"), 1.6, 400, 0).batch(0)
    short = [row for row in batch.target.rows() if int(row[0, 0]) // GROUP == 3]
    assert short and all(row[0].tolist() == list(range(3000, 3012, 2)) for row in short)
    assert int(batch.target.lengths.max()) == 40
    # A group is drawn as often as it is long: 60, 49 and 6 frames.
    assert 400 * 6 / 115 * 0.4 < len(short) < 400 * 6 / 115 * 2


def test_every_place_of_a_recording_is_cropped(store: TokenStore) -> None:
    crops = TokenCrops(store, stage(store, "semantic"), 1.6, 400, 0)
    rows = list(crops.batch(0).target.rows())
    starts = {int(row[0, 0]) // 2 for row in rows if int(row[0, 0]) // GROUP == 0}
    assert starts == set(range(21))  # 60 frames, crops of 40


def test_token_batches_depend_on_the_seed_and_the_step_alone(
    store: TokenStore, tmp_path: Path
) -> None:
    spec = stage(store, "acoustic 0 2", "semantic")
    crops = TokenCrops(store, spec, 0.4, 8, seed=5)
    batches = [crops.batch(step) for step in range(4)]
    again = TokenCrops(TokenStore(tmp_path / "tokens", "train"), spec, 0.4, 8, seed=5)
    torch.rand(3)
    for step in (3, 1):
        batch = again.batch(step)
        assert torch.equal(batch.target.ids, batches[step].target.ids)
        assert torch.equal(batch.given[0].ids, batches[step].given[0].ids)
    assert not torch.equal(batches[0].target.ids, batches[1].target.ids)
    other = TokenCrops(store, spec, 0.4, 8, seed=6).batch(0)
    assert not torch.equal(other.target.ids, batches[0].target.ids)


@pytest.mark.parametrize("seconds", [0.01, 0.1, 0.29, 0.3, 0.57, 0.58, 1.01])
@pytest.mark.parametrize("target", ["acoustic 0 2", "semantic"])
def test_a_window_of_generation_is_as_long_as_a_crop(
    store: TokenStore, target: str, seconds: float
) -> None:
    other = "semantic" if target != "semantic" else "acoustic 0 1"
    spec = stage(store, target, other)
    batch = TokenCrops(store, spec, seconds, 50, 0).batch(0)
    assert int(batch.target.lengths.max()) == window_frames(spec, seconds)


def test_other_tokens_than_a_stage_s_are_refused(store: TokenStore) -> None:
    ours = store.streams["semantic"].fingerprint
    other = bound(store, "semantic", fingerprint="feedbeef")
    for spec in (
        StageSpec("coarse", bound(store, "acoustic 0 2"), (other,)),
        StageSpec("coarse", other),
    ):
        with pytest.raises(DataError) as caught:
            TokenCrops(store, spec, 0.5, 4, 0)
        assert caught.value.place == str(store.directory)
        for name in (ours, "feedbeef", "coarse", "semantic"):
            assert name in caught.value.problem


def test_a_store_without_a_stream_is_refused(
    tmp_path: Path, store: TokenStore, recordings: dict[Split, list[Recording]]
) -> None:
    acoustic = {"acoustic": clocks()["acoustic"]}
    lone = TokenStore(write_store(tmp_path / "lone", acoustic, recordings), "train")
    with pytest.raises(DataError, match=r"lone: holds no semantic tokens; tokenize again"):
        TokenCrops(lone, stage(store, "acoustic 0 2", "semantic"), 0.5, 4, 0)
