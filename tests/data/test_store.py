"""Stores of tokens: what is written, kept, refused."""

from __future__ import annotations

import csv
import json
import re
import resource
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.data_helpers import (
    clock,
    clock_recordings,
    clocks,
    contents,
    into_a_directory,
    killed_again_and_again,
    manifest,
    slow_store,
    timed,
)

from segue.core.errors import DataError, OutputError
from segue.core.spec import TokenSpec, common_samples
from segue.data import store_writer, tokenizing
from segue.data.recordings import Recording, Split, as_table
from segue.data.store_plan import unique_keys
from segue.data.token_store import TokenStore, missing_shards


@pytest.fixture
def recordings(tmp_path: Path) -> dict[Split, list[Recording]]:
    return clock_recordings(tmp_path / "audio")


def tokens(store: TokenStore, index: int, stream: str) -> torch.Tensor:
    """All of a recording's tokens of a stream."""
    frames = int(store.frames_of(stream)[index])
    return store.read(index, stream, slice(None), 0, frames)


def write_store(*arguments: object, **options: object) -> Path:
    """Three shards of the training recordings."""
    return store_writer.write_store(*arguments, shard_seconds=3.0, **options)  # type: ignore


def test_a_store_holds_every_recording_s_tokens(
    tmp_path: Path, recordings: dict[Split, list[Recording]]
) -> None:
    told: list[tuple[str, int, int]] = []
    directory = write_store(
        tmp_path / "tokens", clocks(), recordings, lambda *what: told.append(what)
    )
    assert [name for name, _, _ in told] == ["tokens"] * 4
    assert [done for _, done, _ in told] == [2, 5, 6, 7] and {total for *_, total in told} == {7}
    assert [path.name for path in sorted(directory.glob("*.safetensors"))] == [
        "train-00000.safetensors",
        "train-00001.safetensors",
        "train-00002.safetensors",
        "valid-00000.safetensors",
    ]
    store = TokenStore(directory, "train")
    assert [store.groups[number] for number in store.group] == [
        *("group0", "group1", "group1", "group3", "group1"),
    ]
    assert list(store.names()) == ["a.wav", "b.wav", "c.wav", "d.wav", "e.wav"]
    # Cut to whole frames of both streams: 30.7 steps of 20 ms are 15 frames of 40 ms.
    assert store.frames.tolist() == [60, 15, 12, 6, 22]
    assert store.frames_of("acoustic").tolist() == [120, 30, 24, 12, 44]
    assert tokens(store, 2, "semantic")[0].tolist() == list(range(1100, 1124, 2))
    assert tokens(store, 2, "acoustic").tolist() == [list(range(1100, 1124))] * 4
    some = store.read(2, "acoustic", slice(1, 3), 5, 9)
    assert some.tolist() == [[1105, 1106, 1107, 1108]] * 2 and some.dtype == torch.int64
    rows = list(csv.reader((directory / "problems.csv").open()))
    assert {Path(path).name: why for path, why in rows[1:]} == {
        "missing.wav": "does not exist",
        "too short.wav": "shorter than one frame",
    }
    valid = TokenStore(directory, "valid")
    assert valid.frames.tolist() == [30, 10]


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")
def test_processes_that_share_the_recordings_write_the_same_store(
    tmp_path: Path, recordings: dict[Split, list[Recording]]
) -> None:
    one = write_store(tmp_path / "one", clocks(), recordings)
    two = write_store(tmp_path / "two", clocks(), recordings, workers=2)
    assert contents(one) == contents(two)


@pytest.mark.parametrize("semantic_rate", [8000, 24_000])
def test_tokenizers_of_different_sample_rates_stay_aligned(
    tmp_path: Path, semantic_rate: int
) -> None:
    # Low levels only: resampling alters a constant by a part in a thousand.
    items: dict[Split, list[Recording]] = {
        "train": [timed(tmp_path, 0, f"{steps}", 0, steps) for steps in (180, 30.7, 99.9)]
    }
    store = TokenStore(write_store(tmp_path / "t", clocks(semantic_rate), items), "train")
    for index in range(len(store)):
        semantic, acoustic = (tokens(store, index, name) for name in ("semantic", "acoustic"))
        assert torch.equal(semantic[0], acoustic[0, ::2])


def test_a_codec_is_given_audio_at_its_own_rate(
    tmp_path: Path, recordings: dict[Split, list[Recording]]
) -> None:
    """Not what is left of it at the rate of a narrower semantic tokenizer, as that is not what it
    is given in a pipeline."""
    alone = {"acoustic": clock(frame_rate=50, num_levels=4)}
    items: dict[Split, list[Recording]] = {"train": recordings["train"][:3]}
    expected = TokenStore(write_store(tmp_path / "alone", alone, items), "train")
    found = TokenStore(write_store(tmp_path / "both", clocks(8000), items), "train")
    assert len(found) == len(expected) == 3
    for index in range(3):
        ours, theirs = (tokens(store, index, "acoustic") for store in (found, expected))
        assert torch.equal(ours, theirs[:, : ours.shape[1]])


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
    monkeypatch.setattr(tokenizing, "MAX_PIECE_SECONDS", 0.33)
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
    assert tokenizers["semantic"].calls == 3  # type: ignore[attr-defined]
    for path, stamp in stamps.items():
        assert (path.stat().st_mtime_ns == stamp) == (path != lost)


def test_a_recording_that_comes_back_is_tokenized(
    tmp_path: Path, recordings: dict[Split, list[Recording]]
) -> None:
    path = recordings["train"][0].path
    path.rename(tmp_path / "away")
    directory = write_store(tmp_path / "tokens", clocks(), recordings)
    count = len(TokenStore(directory, "train"))
    (tmp_path / "away").rename(path)
    write_store(directory, clocks(), recordings)
    assert len(TokenStore(directory, "train")) == count + 1
    assert path.name not in (directory / "problems.csv").read_text()


def test_recordings_of_other_lengths_are_refused(
    tmp_path: Path, recordings: dict[Split, list[Recording]]
) -> None:
    directory = write_store(tmp_path / "tokens", clocks(), recordings)
    first, *others = recordings["train"]
    changed = {**recordings, "train": [replace(first, seconds=first.seconds + 1), *others]}
    with pytest.raises(DataError, match="other lengths now"):
        write_store(directory, clocks(), changed)


def test_an_interrupted_run_goes_on_where_it_was(
    tmp_path: Path, recordings: dict[Split, list[Recording]]
) -> None:
    whole = contents(write_store(tmp_path / "whole", clocks(), recordings))

    def stop(split: str, done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "tokens", clocks(), recordings, stop)
    with pytest.raises(
        DataError, match=r"holds 2 of 3 shards of the split 'train' \(missing: train-00002\.safet"
    ):
        TokenStore(tmp_path / "tokens", "train")
    assert contents(write_store(tmp_path / "tokens", clocks(), recordings)) == whole


def test_a_run_that_was_killed_leaves_no_half_shard(
    tmp_path: Path, recordings: dict[Split, list[Recording]]
) -> None:
    directory = write_store(tmp_path / "tokens", clocks(), recordings)
    (directory / ".tmp-abc.safetensors").write_bytes(b"half")
    write_store(directory, clocks(), recordings)  # passes over it
    assert len(TokenStore(directory, "train")) == 5


def renamed(items: dict[Split, list[Recording]]) -> dict[Split, list[Recording]]:
    return {s: [Recording(r.path, r.seconds, "x" + r.group, s) for r in items[s]] for s in items}


@pytest.mark.parametrize(
    "other",
    [
        lambda items: (clocks() | {"semantic": clock(frame_rate=10)}, items),
        lambda items: ({"acoustic": clock(frame_rate=50, num_levels=4)}, items),
        lambda items: (clocks(), {"train": items["train"][:-1], "valid": items["valid"]}),
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
    assert re.match("holds tokens of (other tokenizers|[0-9] recordings of)", caught.value.problem)
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
        save_file({}, shard, {"segue": json.dumps({"digest": "", "groups": [], "problems": []})})
    elif what == "header cut":
        header.write_text(header.read_text()[:30])
    elif what == "header list":
        header.write_text("[]")
    elif what == "version":
        header.write_text(header.read_text().replace('"format_version": 2', '"format_version": 3'))
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
    assert len(TokenStore(directory, "train")) == 5


@pytest.mark.parametrize(
    ("what", "problem"),
    [("header cut", "cannot be read"), ("header list", "cannot be read"), ("version", "version 3")],
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
    with pytest.raises(DataError, match="is not a token store"):
        TokenStore(tmp_path, "train")
    directory = write_store(tmp_path / "tokens", clocks(), {"train": recordings["train"][:3]})
    with pytest.raises(DataError, match="holds 0 of 0 shards of the split 'valid'"):
        TokenStore(directory, "valid")
    useless = {"train": recordings["train"][3:5]}
    directory = write_store(tmp_path / "useless", clocks(), useless)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"holds no token of the split 'train'; see .*problems.csv"):
        TokenStore(directory, "train")


# --- appended, shared, remote -----------------------------------------------------------------


def test_ids_take_two_bytes_where_they_fit(
    tmp_path: Path, recordings: dict[Split, list[Recording]]
) -> None:
    directory = write_store(tmp_path / "tokens", clocks(), recordings)
    with safe_open(directory / "train-00000.safetensors", "pt") as file:  # any reader of the format
        assert file.get_tensor("acoustic").dtype == torch.uint16
        assert file.get_tensor("acoustic").shape == (4, 120)


def test_recordings_may_be_added_and_reordered(
    tmp_path: Path, recordings: dict[Split, list[Recording]]
) -> None:
    few: dict[Split, list[Recording]] = {
        "train": recordings["train"][:4],
        "valid": recordings["valid"],
    }
    directory = write_store(tmp_path / "tokens", clocks(), few)
    before = contents(directory)
    more: dict[Split, list[Recording]] = recordings | {"train": recordings["train"][::-1]}
    tokenizers = clocks()
    write_store(directory, tokenizers, more)
    after = contents(directory)
    shards = {name for name in before if name.endswith(".safetensors")}
    assert all(after[name] == before[name] for name in shards)
    assert tokenizers["semantic"].calls == 2  # type: ignore[attr-defined]  # d and e alone
    store = TokenStore(directory, "train")
    assert list(store.names()) == ["a.wav", "b.wav", "c.wav", "e.wav", "d.wav"]
    write_store(directory, tokenizers, recordings)  # again, in the old order: nothing to do
    assert tokenizers["semantic"].calls == 2 and contents(directory) == after  # type: ignore


def test_recordings_of_one_group_and_name_are_told_apart(tmp_path: Path) -> None:
    items = []
    for number in range(3):
        (tmp_path / f"take{number}").mkdir()
        items.append(timed(tmp_path / f"take{number}", 0, "same", 100 * number, 20))
    keys = unique_keys(as_table(items))
    assert len(set(keys.tolist())) == 3
    assert unique_keys(as_table(items[:2])).tolist() == keys[:2].tolist()
    store = TokenStore(write_store(tmp_path / "t", clocks(), {"train": items}), "train")
    assert [int(tokens(store, i, "semantic")[0, 0]) for i in range(3)] == [0, 100, 200]


@pytest.mark.parametrize("world", [2, 3, 7])
def test_ranks_write_what_one_process_writes(
    tmp_path: Path, recordings: dict[Split, list[Recording]], world: int
) -> None:
    whole = contents(write_store(tmp_path / "whole", clocks(), recordings))
    for rank in reversed(range(1, world)):
        write_store(tmp_path / "shared", clocks(), recordings, rank=rank, world=world)
    missing = missing_shards(tmp_path / "shared")
    assert missing and missing[0] == "train-00000.safetensors"
    with pytest.raises(DataError, match="on each rank: it writes what is missing"):
        TokenStore(tmp_path / "shared", "train")
    write_store(tmp_path / "shared", clocks(), recordings, rank=0, world=world)
    assert contents(tmp_path / "shared") == whole and missing_shards(tmp_path / "shared") == []
    other = write_store(tmp_path / "shared", clocks(), recordings, rank=1, world=2)
    assert contents(other) == whole  # whoever comes back


def test_a_store_may_be_remote(
    tmp_path: Path, recordings: dict[Split, list[Recording]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path / "cache"))
    directory = write_store(tmp_path / "tokens", clocks(), recordings)
    memory = fsspec.filesystem("memory")
    for name, data in contents(directory).items():
        memory.pipe(f"/store-test/{name}", data)
    try:
        here, there = TokenStore(directory, "train"), TokenStore("memory://store-test", "train")
        assert not (tmp_path / "cache").exists()  # shards are fetched when they are needed
        for index in range(len(here)):
            assert torch.equal(tokens(here, index, "acoustic"), tokens(there, index, "acoustic"))
        assert len(list((tmp_path / "cache" / "stores").rglob("*.safetensors"))) == 3
        memory.rm("/store-test/train-00001.safetensors")
        with pytest.raises(DataError, match=r"missing: train-00001"):
            TokenStore("memory://store-test", "train")
    finally:
        memory.rm("/store-test", recursive=True)


def test_ids_stay_on_disk(tmp_path: Path) -> None:
    """Three million ids, of which few are looked at."""
    items = [timed(tmp_path, 0, "long", 0, 300)] * 40
    many = [replace(item, start=0.0, seconds=6.0 - n / 1000) for n, item in enumerate(items)]
    directory = write_store(tmp_path / "t", {"a": clock(num_levels=256)}, {"train": many})
    tracemalloc.start()
    store = TokenStore(directory, "train")
    for index in range(len(store)):
        store.read(index, "a", slice(0, 1), 100, 200)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    assert size > 6e6 and used < 0.6e6


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (Path.unlink, "is missing; put it back, or run `segue tokenize` again"),
        (into_a_directory, "cannot be read (Is a directory);"),
    ],
)
def test_a_shard_that_vanishes_is_told(
    tmp_path: Path,
    recordings: dict[Split, list[Recording]],
    harm: Callable[[Path], object],
    sentence: str,
) -> None:
    directory = write_store(tmp_path / "tokens", clocks(), recordings)
    store = TokenStore(directory, "train")
    shard = directory / "train-00001.safetensors"
    harm(shard)
    with pytest.raises(DataError) as caught:
        tokens(store, 1, "semantic")
    assert str(caught.value).startswith(f"{shard}: {sentence}")


@pytest.mark.slow
def test_a_store_survives_kills(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    rows = ["path,group,duration_s,split"]
    for number in range(300):
        timed(tmp_path / "audio", number % 7, f"{number}", number, 20 + number % 5)
        rows.append(f"audio/{number}.wav,g{number % 7},0.4,train")
    listed = manifest(tmp_path, *rows)
    slow_store(listed, tmp_path / "whole")
    kills = killed_again_and_again(slow_store, listed, tmp_path / "killed")
    assert kills >= 10
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
