"""Lists of recordings, from every kind of source."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tarfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile
from tests.data_helpers import manifest, write_wave

from segue.core.errors import AudioError, DataError, SegueError
from segue.data.audio_files import read_recording
from segue.data.lhotse_source import by_cut
from segue.data.recipe import read_rows, write_manifest
from segue.data.recordings import Recording, as_table, key
from segue.data.sources import (
    Grouping,
    list_recordings,
    load_recordings,
    read_recordings,
)
from segue.data.tars import Member


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
    assert len(train) + len(valid) == 62
    groups = [{recording.group for recording in split} for split in (train, valid)]
    assert not groups[0] & groups[1] and len(groups[0] | groups[1]) == 31
    assert 1 <= len(groups[1]) <= 4  # about one of twenty
    broken = next(r for r in [*train, *valid] if r.path.name == "broken.wav")
    assert broken.seconds == 0  # listed, so that it can be told
    flac = next(r for r in [*train, *valid] if r.path.suffix == ".FLAC")
    assert flac.group == "speaker0/deeper" and flac.seconds == pytest.approx(0.2)
    assert {r.split for r in train} == {"train"} and {r.split for r in valid} == {"valid"}


def test_in_a_flat_folder_every_file_is_a_group(tmp_path: Path) -> None:
    for number in range(5):
        write_wave(tmp_path / f"{number}.wav", 0.1)
    train, valid = load_recordings(tmp_path, "train"), load_recordings(tmp_path, "valid")
    assert (len(train), len(valid)) == (4, 1)
    assert sorted(r.group for r in [*train, *valid]) == list("01234")


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
    found = [*load_recordings(tmp_path, "train"), *load_recordings(tmp_path, "valid")]
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
    assert list(valid) == [Recording(tmp_path / "audio" / "b.wav", 0.25, "s2", "valid")]


def test_group_outranks_speaker_and_the_file_name_stands_in(tmp_path: Path) -> None:
    path = manifest(tmp_path, "path,group,speaker,split", "a.wav,g,s,train", "b.wav,,s,train",
                    "c.wav,,,train")  # fmt: skip
    assert [r.group for r in load_recordings(path, "train")] == ["g", "s", "c"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_spreadsheet_s_marks_are_no_part_of_its_fields(tmp_path: Path, end: str) -> None:
    """Neither the byte-order mark nor line ends, empty columns or empty lines."""
    path = tmp_path / "m.csv"
    lines = ("path,duration_s,split,,", "a.wav,1,train,,", "", "b.wav,1,valid,,", "")
    path.write_text(end.join(lines), encoding="utf-8-sig", newline="")
    assert load_recordings(path, "train")[0].place == str(tmp_path / "a.wav")
    assert read_rows(path, ["path"])[1][1]["split"] == "valid"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path,split", "a.wav,train", "", "b.wav,test"], "line 4: split 'test' is unknown; write"),
        (["path,duration_s", "a.wav,1", "b.wav,long"], "line 3: duration_s"),
        (["path,duration_s", "a.wav,-1"], "line 2: duration_s -1"),
        (["path,duration_s", "a.wav,nan"], "line 2: duration_s nan"),
        (["path,duration_s", "a.wav,inf"], "line 2: duration_s inf"),
        (["path,duration_s", "a.wav,1e9"], "line 2: duration_s 1e+09 is not a length"),
        (["path,duration_s", ",1"], "line 2: names no path; fill the column"),
        (["split,path", "train,"], "line 2: names no path; fill the column"),
        (["path,split", "a.wav,train,s1"], "line 2: has 3 fields, but the first line names 2 col"),
        (["path,split", "a.wav", "b.wav,valid"], "line 2: has 1 fields, but the first line names"),
        (["path,split", "a, b.wav,train"], "line 2: has 3 fields, but"),
        (["path,split", '"a.wav,train', "b.wav,valid"], "line 3: has 1 fields, but"),
        (["path,offset", "a.wav,3"], "line 2: has an offset in bytes but no size; fill the column"),
        (["path,offset", "a.wav,1.5"], "line 2: offset '1.5' is out of range; write a count"),
        (["path,channel", "a.wav,99999"], "line 2: channel '99999' is out of range; write a count"),
        (["path,size", f"a.wav,{10**30}"], "line 2: size '1000000000000000000000000000000' is out"),
        (["path,x,split", '"a\n.wav",1,train', "b,1,c"], "line 4: split 'c' is unknown"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, lines: list[str], message: str) -> None:
    path = manifest(tmp_path, *lines)
    with pytest.raises(DataError) as caught:
        load_recordings(path, "train")
    assert str(caught.value).startswith(f"{path}, {message}")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("file,split", "has no column 'path'; its first line must name the columns: path, and"),
        ("path;split", "has no column 'path'; its columns are separated by ';'; separate them by"),
        ("path,split,path", "has the column 'path' twice; keep one of them"),
        ("path,who,who", "has the column 'who' twice; keep one of them"),
    ],
)
def test_a_bad_header_is_refused(tmp_path: Path, header: str, message: str) -> None:
    path = manifest(tmp_path, header)
    with pytest.raises(DataError) as caught:
        load_recordings(path, "train")
    assert str(caught.value).startswith(f"{path}: {message}")


def test_columns_that_others_use_for_parts_are_said_to_be_ignored(tmp_path: Path) -> None:
    write_wave(tmp_path / "a.wav", 1.0)
    path = manifest(
        tmp_path, "path,start,END,text,start_s, group", "a.wav,0,1,hello,,", "a.wav,1,2,,0.25,"
    )
    columns = (
        r"ignored the columns \['start', 'END', ' group'\]; those that count are path, speaker,"
    )
    with pytest.warns(UserWarning, match=columns):
        whole, rest = list_recordings(path, lambda *_: None)
    assert whole.start is None
    assert len(read_recording(rest).wave) == 12_000  # no length: to the end of the file


def test_sources_that_cannot_be_used(tmp_path: Path) -> None:
    binary = tmp_path / "audio.csv"
    binary.write_bytes(bytes(range(256)))
    (tmp_path / "empty").mkdir()
    cases = {
        tmp_path / "missing": "does not exist; name a folder of audio or a CSV manifest",
        tmp_path / "empty": "holds no recording of the split 'train'; add audio (.aif",
        binary: "cannot be read (",
        tmp_path / "one.flac": "is one recording; name the folder that it lies in, or a CSV",
    }
    (tmp_path / "one.flac").touch()
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
    assert list(load_recordings(path, "train")) == [
        Recording(Path("/data/ä, b.wav"), 1.5, "g", "train")
    ]
    with pytest.raises(DataError, match=r"lacks the column 'label'; its first line .* path, label"):
        read_rows(path, ["path", "label"])
    with pytest.raises(DataError, match="does not exist; name a CSV file"):
        read_rows(tmp_path / "none.csv", [])


# --- tars, cuts, URLs, several sources --------------------------------------------------------


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SEGUE_CACHE", str(cache))
    return cache


def tell(recording: Recording) -> int:
    """The first sample of a ``ramp`` piece tells where it begins."""
    return round(float(read_recording(recording).wave[0]) * 32768)


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def wave_bytes(first: int, seconds: float = 0.1, suffix: str = "flac") -> bytes:
    data = io.BytesIO()
    samples = numpy.arange(first, first + round(seconds * 16_000), dtype=numpy.int16)
    soundfile.write(data, samples, 16_000, format=suffix)
    return data.getvalue()


def shards(folder: Path) -> Path:
    """Two WebDataset shards: speakers by description, by folder, by nothing."""
    folder.mkdir(exist_ok=True)
    tar(folder / "s-000.tar", {
        "a.flac": wave_bytes(100), "a.json": b'{"speaker": "ann"}', "a.txt": b"words",
        "bob/b.wav": wave_bytes(200, 0.2, "wav"),
    })  # fmt: skip
    tar(folder / "s-001.tar", {"c.flac": wave_bytes(300), "d.flac": b"no audio"})
    return folder


def test_web_dataset_shards_are_read_by_random_access(tmp_path: Path, own_cache: Path) -> None:
    folder = shards(tmp_path / "s")
    for source in (folder, f"{folder}/s-{{000..001}}.tar", f"{folder}/s-00{{0,1}}.tar"):
        found = list(read_recordings(source))
        assert [r.group for r in found] == ["ann", "bob", "c", "d"]
        assert [round(r.seconds, 3) for r in found] == [0.1, 0.2, 0.1, 0]
        assert [tell(r) for r in found[:3]] == [100, 200, 300]
        assert found[1].path.name == "b.wav" and found[1].place.endswith("s-000.tar!bob/b.wav")
    with pytest.raises(AudioError, match=r"s-001\.tar!d\.flac: cannot be read as audio"):
        read_recording(found[3])
    assert len(list((own_cache / "tars").iterdir())) == 2


def test_an_index_is_used_until_its_tar_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    folder = shards(tmp_path / "s")
    before = list(read_recordings(folder))
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", None)  # no tar is looked through again
        assert list(read_recordings(folder)) == before
    tar(folder / "s-001.tar", {"e.flac": wave_bytes(500), "f.flac": wave_bytes(600)})
    assert [r.path.name for r in read_recordings(folder)] == ["a.flac", "b.wav", "e.flac", "f.flac"]
    for index in (own_cache / "tars").iterdir():
        index.write_bytes(b"damaged")
    assert len(read_recordings(folder)) == 4


def test_shards_that_the_library_wrote(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(f"{tmp_path}/x-%02d.tar", maxcount=2, verbose=0) as writer:
        for number in range(5):
            writer.write({"__key__": f"u{number}", "flac": wave_bytes(10 * number),
                          "json": {"speaker": f"s{number % 2}"}})  # fmt: skip
    found = list(read_recordings(f"{tmp_path}/x-{{00..02}}.tar"))
    assert [(tell(r), r.group) for r in found] == [(10 * n, f"s{n % 2}") for n in range(5)]


def test_damaged_tars_are_told_and_the_rest_is_used(tmp_path: Path) -> None:
    folder = shards(tmp_path / "s")
    whole = (folder / "s-000.tar").read_bytes()
    cut_at = whole.index(b"bob/b.wav") + 512 + 3000  # inside b.wav
    (folder / "s-000.tar").write_bytes(whole[:cut_at])
    (folder / "s-002.tar").write_bytes(b"no tar at all" * 100)
    with pytest.warns(UserWarning, match=r"left out 2, first .*s-000.tar!bob/b.wav: is cut off"):
        found = read_recordings(folder)
    assert [r.path.name for r in found] == ["a.flac", "c.flac", "d.flac"]
    with pytest.raises(DataError, match=r"s-007\.tar: does not exist; check the pattern"):
        read_recordings(f"{folder}/s-{{000..007}}.tar".replace("{000", "{007"))


def test_links_in_tars_and_joined_tars_are_reported(tmp_path: Path) -> None:
    path = tar(tmp_path / "s.tar", {"a.flac": wave_bytes(100)})
    with tarfile.open(path, "a") as archive:
        for name, kind in (("b.flac", tarfile.LNKTYPE), ("c.flac", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.flac"
            archive.addfile(info)
    problems: list[tuple[str, str]] = []
    path.write_bytes(2 * path.read_bytes())
    (found,) = list_recordings(path, lambda *problem: problems.append(problem))
    assert tell(found) == 100
    assert [place.partition("!")[2] for place, _ in problems] == ["b.flac", "c.flac", ""]
    assert [why.split(",")[0].split(";")[0] for _, why in problems] == [
        *2 * ["is a link"], "goes on after its end"
    ]  # fmt: skip


def test_of_members_of_one_name_in_a_tar_the_last_one_counts(tmp_path: Path) -> None:
    path = tar(tmp_path / "s.tar", {"a.flac": wave_bytes(100), "b.flac": wave_bytes(300)})
    with tarfile.open(path, "a") as archive:  # as `tar -r` adds a corrected file
        info = tarfile.TarInfo("a.flac")
        info.size = len(wave_bytes(200))
        archive.addfile(info, io.BytesIO(wave_bytes(200)))
    problems: list[tuple[str, str]] = []
    found = list_recordings(path, lambda *problem: problems.append(problem))
    assert [tell(recording) for recording in found] == [200, 300]
    assert problems == [(f"{path}!a.flac", "stands in it 2 times; the last one counts")]


@pytest.mark.parametrize(
    ("rows", "overlap"),
    [
        (("a.wav,train,x", "b.wav,train,y", "a.wav,valid,x"), "1 recordings .* first .*/a.wav"),
        (("a.wav,train,x", "b.wav,valid,x", "c.wav,valid,z"), "1 groups .* both splits, first x"),
        (("a.wav,train,", "sub/a.wav,valid,"), ""),  # groups by the names of files
        (("a.wav,train,x", "b.wav,valid,y"), ""),
    ],
)
def test_what_stands_in_both_splits_is_told(
    tmp_path: Path, rows: Sequence[str], overlap: str
) -> None:
    source = manifest(tmp_path, "path,split,group", *rows)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(list_recordings(source, lambda *_: None)) == len(rows)
    assert len(caught) == bool(overlap)
    for warning in caught:
        assert re.search(f"{overlap}: figures of held-out audio will flatter", str(warning.message))


@pytest.fixture
def cut_set(tmp_path: Path) -> object:
    """Five cuts of two speakers, each the middle second of a recording of two."""
    lhotse = pytest.importorskip("lhotse")
    cuts = []
    for number in range(5):
        path = tmp_path / "audio" / f"{number}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, numpy.arange(32_000, dtype=numpy.int16) - number, 16_000)
        whole = lhotse.Recording.from_file(path)
        speech = lhotse.SupervisionSegment(f"s{number}", whole.id, 0, 1, speaker=f"spk{number % 2}")
        cuts.append(lhotse.MonoCut(f"c{number}", 0.5, 1.0, 0, [speech], recording=whole))
    return lhotse.CutSet.from_cuts(cuts)


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
def test_cuts_of_lhotse(tmp_path: Path, cut_set: Any, name: str) -> None:
    cut_set.to_file(tmp_path / name)
    found = list(read_recordings(tmp_path / name))
    assert [(r.start, r.seconds, r.group) for r in found] == [
        (0.5, 1.0, f"spk{n % 2}") for n in range(5)
    ]
    for recording, cut in zip(found, cut_set, strict=True):
        assert numpy.array_equal(read_recording(recording).wave.numpy(), cut.load_audio()[0])
    assert len({r.split for r in found}) == 2 and len({(r.group, r.split) for r in found}) == 2


def test_cuts_that_are_no_stretch_of_a_file_are_told(tmp_path: Path, cut_set: Any) -> None:
    first, second, *_ = cut_set
    mixed = [first, first.append(second, preserve_id="left").with_id("mixed"),
             second.perturb_speed(1.1)]  # fmt: skip
    with (tmp_path / "cuts.jsonl").open("w") as file:
        file.writelines(json.dumps(cut.to_dict()) + "\n" for cut in mixed)
    problems: list[tuple[str, str]] = []
    found = list_recordings(tmp_path / "cuts.jsonl", lambda *p: problems.append(p))
    assert [r.path.name for r in found] == ["0.wav"] and len(problems) == 2
    assert "is a MixedCut" in problems[0][1]
    assert "is transformed when it is loaded" in problems[1][1]
    with (tmp_path / "cuts.jsonl").open("a") as file:
        file.write('{"half": \n')
    with pytest.raises(DataError, match=r"cuts\.jsonl, line 4: cannot be read as a CutSet"):
        read_recordings(tmp_path / "cuts.jsonl")


def test_members_of_one_name_are_told_apart_and_reported() -> None:
    names = ("a.flac", "./b.c.flac", "x/1.flac", "y/1.flac", "a.wav")
    members = [Member(name, at, 1, 1.0, "") for at, name in enumerate(names)]
    problems: list[tuple[str, str]] = []
    found = by_cut("s.tar", members, lambda *problem: problems.append(problem))
    assert {key: member.offset for key, member in found.items()} == {
        "a": 0, "b.c": 1, "x/1": 2, "y/1": 3,
    }  # fmt: skip
    assert problems == [("s.tar!a.wav", "has the name of a.flac, which is used")]


def test_a_member_with_an_absurd_header_stops_no_other(tmp_path: Path, own_cache: Path) -> None:
    good = tmp_path / "good.wav"
    write_wave(good, 1.0)
    bad = bytearray(good.read_bytes())
    bad[24:28] = (7).to_bytes(4, "little")  # its sample rate
    (tmp_path / "bad.wav").write_bytes(bad)
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name in ("bad.wav", "good.wav"):
            tar.add(tmp_path / name, name)
    found = read_recordings(tmp_path / "s.tar")
    assert [(r.member, r.seconds) for r in found] == [("bad.wav", 0.0), ("good.wav", 1.0)]


def test_shar_of_lhotse(tmp_path: Path, cut_set: Any) -> None:
    (tmp_path / "shar").mkdir()
    cut_set.to_shar(tmp_path / "shar", fields={"recording": "flac"}, shard_size=2)
    found = list(read_recordings(tmp_path / "shar"))
    assert [r.group for r in found] == [f"spk{n % 2}" for n in range(5)]
    for recording, cut in zip(found, cut_set, strict=True):
        assert numpy.array_equal(read_recording(recording).wave.numpy(), cut.load_audio()[0])
    (tmp_path / "shar" / "recording.000001.tar").unlink()
    with pytest.warns(UserWarning, match=r"cuts\.000001\.jsonl\.gz: has no tar of recordings"):
        assert len(read_recordings(tmp_path / "shar")) == 3


def test_every_kind_of_source_may_be_remote(tmp_path: Path, cut_set: Any) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    (tmp_path / "up" / "shar").mkdir(parents=True)
    cut_set.to_shar(tmp_path / "up" / "shar", fields={"recording": "flac"}, shard_size=3)
    shards(tmp_path / "up" / "tars")
    for speaker in "xy":
        write_wave(tmp_path / "up" / "folder" / speaker / "a.wav", 0.1)
    manifest(tmp_path / "up", "path,group", "folder/x/a.wav,gx", "folder/y/a.wav,gy")
    (tmp_path / "up" / "all.yaml").write_text("sources: [{source: folder}, {source: shar}]")
    for path in (tmp_path / "up").rglob("*"):
        if path.is_file():
            memory.pipe(f"/up/{path.relative_to(tmp_path / 'up')}", path.read_bytes())
    try:
        for name in ("folder", "shar", "tars", "tars/s-{000..001}.tar", "manifest.csv", "all.yaml"):
            here, there = (list(read_recordings(f"{base}/{name}")) for base in
                           (tmp_path / "up", "memory://up"))  # fmt: skip
            assert len(here) == len(there) >= 2
            for ours, theirs in zip(here, there, strict=True):
                assert theirs.where.startswith("memory://")
                assert (ours.seconds, ours.group, ours.split, ours.name) == (
                    *(theirs.seconds, theirs.group, theirs.split, theirs.name),
                )
                if ours.seconds:
                    assert read_recording(ours).wave.equal(read_recording(theirs).wave)
        with pytest.raises(DataError, match=r"memory://nowhere: does not exist"):
            read_recordings("memory://nowhere")
    finally:
        memory.rm("/up", recursive=True)


def test_a_url_of_no_known_kind() -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(DataError, match=r"nonsense://x: cannot be reached \(Protocol not known"):
        read_recordings("nonsense://x")


def test_several_sources_with_weights(tmp_path: Path) -> None:
    for group in range(30):
        write_wave(tmp_path / "folder" / f"g{group}" / "a.wav", 0.1)
    shards(tmp_path / "tars")
    (tmp_path / "all.yaml").write_text(
        "sources:\n"
        "- {source: folder, weight: 2}\n"
        "- {source: tars, format: webdataset, split: valid, weight: 0.5}\n"
    )
    found = read_recordings(tmp_path / "all.yaml")
    assert found.weights == (2.0, 0.5)
    assert found.weight_of_each().tolist() == [2.0] * 30 + [0.5] * 4
    assert {r.split for r in found if r.source == 1} == {"valid"}
    assert {r.split for r in found if r.source == 0} == {"train", "valid"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sources: []", "sources"),
        ("sources: [{source: a, weigth: 2}]", "weigth: unknown key; did you mean 'weight'"),
        ("sources: [{source: a, weight: 0}]", "weight: 0 is out of range"),
        ("sources: [{source: nope}]", "nope: does not exist; name a folder"),
        ("- a", "a mapping"),
        ("{", "is not valid YAML"),
    ],
)
def test_lists_of_sources_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "all.yaml").write_text(text)
    with pytest.raises(SegueError) as caught:
        read_recordings(tmp_path / "all.yaml")
    assert message in str(caught.value) and str(tmp_path) in str(caught.value)


# --- held out ---------------------------------------------------------------------------------


def test_no_group_is_in_two_splits_and_none_moves_when_others_come(tmp_path: Path) -> None:
    rows = [f"{s}-{t}.wav,s{s},1" for s in range(400) for t in range(3)]
    few = read_recordings(manifest(tmp_path, "path,speaker,duration_s", *rows[:600]))
    splits = {r.group: r.split for r in few}
    held = sum(split == "valid" for split in splits.values())
    assert all(splits[r.group] == r.split for r in few) and 3 <= held <= 20
    more = read_recordings(manifest(tmp_path, "path,speaker,duration_s", *rows))
    assert all(splits.get(r.group, r.split) == r.split for r in more)


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (0.5, 70, 130), (0.01, 1, 8)])
def test_the_share_that_is_held_out(tmp_path: Path, share: float, least: int, most: int) -> None:
    path = manifest(tmp_path, "path,who,duration_s", *[f"{n}.wav,s{n},1" for n in range(200)])
    found = list_recordings(path, lambda *p: None, Grouping("who", held_out=share))
    assert least <= sum(r.split == "valid" for r in found) <= most


def test_what_is_a_group_may_be_chosen(tmp_path: Path) -> None:
    for name in ("corpus/ann/one/a.wav", "corpus/ann/two/b.wav", "corpus/bob/one/c.wav"):
        write_wave(tmp_path / name, 0.1)
    groups = {
        level: [r.group for r in list_recordings(tmp_path, print, Grouping(level=level))]
        for level in (None, 0, 1, 2, 5)
    }
    assert groups[None] == ["corpus/ann/one", "corpus/ann/two", "corpus/bob/one"]
    assert groups[0] == ["corpus"] * 3 and groups[1] == ["ann", "ann", "bob"]
    assert groups[2] == ["one", "two", "one"] and groups[5] == ["a", "b", "c"]
    path = manifest(tmp_path, "path,reader", "a.wav,ann")
    assert list_recordings(path, print, Grouping("reader"))[0].group == "ann"
    with pytest.raises(DataError, match="has no column 'singer'; use one of path, reader"):
        list_recordings(path, print, Grouping("singer"))


# --- tables -----------------------------------------------------------------------------------


def test_a_table_holds_what_was_put_in() -> None:
    items = [
        Recording("/a/b c/ü.wav", 1.25, "g", "train"),
        Recording("s3://bucket/x/y.flac", 0.0, "h", "valid", start=0.5, channel=1),
        Recording("/t/x.tar", 2.0, "g", "train", 512, 1000, None, None, "k/m.wav", 3),
        Recording("plain.wav", 1.0, "", "valid"),
        Recording(os.fsdecode(b"/raw/\xff.wav"), 1.0, "r", "train"),
    ]
    table = as_table(items)
    assert list(table) == items and table[-1] == items[-1]
    assert list(table[1:4:2]) == items[1:4:2]
    assert list(table.of_split("valid")) == [items[1], items[3]]
    assert len({key(item) for item in items}) == 5


MEASURE = """
import sys, tracemalloc
from segue.data.sources import read_recordings
tracemalloc.start()
found = read_recordings(sys.argv[1])
print(len(found), *tracemalloc.get_traced_memory())
"""


@pytest.mark.slow
def test_a_list_of_100_000_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    with path.open("w") as file:
        file.write("path,group,duration_s\n")
        for n in range(100_000):
            file.write(f"/corpus/speaker{n // 50:05d}/utterance-{n:08d}.flac,s{n // 50},12.5\n")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True
    )
    count, kept, peak = map(int, done.stdout.split())
    assert count == 100_000
    assert read_recordings(path)[77_777].name == "utterance-00077777.flac"
    assert kept < 160 * count and peak < 40e6  # bytes
