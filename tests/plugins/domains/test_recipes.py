"""The domains' data recipes: from what is downloaded to a manifest that can be trained on."""

from __future__ import annotations

import csv
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy
import pytest
import soundfile

from segue.core.errors import DataError
from segue.data.sources import load_recordings
from segue.plugins.domains.piano import recipe as piano
from segue.plugins.domains.speech import recipe as speech


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- speech -----------------------------------------------------------------------------------

HEADER = "path,corpus,speaker,gender,split,text,duration_s"
LINES = [
    'libri/1-a.wav,librispeech-train-clean-100,1,f,train,"HE SAID, WELL",2.5',
    "libri/1-b.wav,librispeech-train-clean-100,1,f,train,,3.0",
    "libri/2-a.wav,librispeech-train-clean-100,2,m,valid,,1.5",
    "words/yes.wav,speech-commands-v0.02-test,1,,train,yes,1.0",
    "digits/7.wav,fsdd,theo,m,train,7,0.4",
    "soc/9.wav,speechocean762-train,9,f,train,,4.0",
]


def collection(folder: Path, lines: Sequence[str] = LINES, header: str = HEADER) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return folder


def test_running_speech_is_told_from_single_words(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    path = speech.prepare(
        collection(tmp_path / "in"), tmp_path / "out", lambda *what: told.append(what)
    )
    assert path == tmp_path / "out" / "manifest.csv"
    train, valid = load_recordings(path, "train"), load_recordings(path, "valid")
    assert [(r.path, r.seconds, r.group) for r in train] == [
        (tmp_path / "in" / "libri" / "1-a.wav", 2.5, "librispeech-train-clean-100/1"),
        (tmp_path / "in" / "libri" / "1-b.wav", 3.0, "librispeech-train-clean-100/1"),
        (tmp_path / "in" / "soc" / "9.wav", 4.0, "speechocean762-train/9"),
    ]
    assert [r.group for r in valid] == ["librispeech-train-clean-100/2"]
    every = tmp_path / "out" / "manifest-all.csv"
    assert len(load_recordings(every, "train")) == 5
    # Speaker 1 of one corpus is not speaker 1 of another.
    assert len({row["group"] for row in rows(every)}) == 5
    assert told == [("manifest", 6, 6)]


def test_a_collection_of_words_alone_is_taken_as_it_is(tmp_path: Path) -> None:
    path = speech.prepare(collection(tmp_path / "in", LINES[3:5]), tmp_path / "out")
    assert len(load_recordings(path, "train")) == 2


def test_speech_that_cannot_be_prepared(tmp_path: Path) -> None:
    columns = "path, corpus, speaker, split, duration_s"
    for source, problem in ((tmp_path / "none", "does not exist"), (Path(__file__), "is a file")):
        with pytest.raises(
            DataError, match=rf"{problem}; name a folder .*{columns}.*prepare files"
        ):
            speech.prepare(source, tmp_path / "out")
    with pytest.raises(DataError, match=rf"manifest.csv: does not exist; .* the columns {columns}"):
        speech.prepare(tmp_path, tmp_path / "out")
    lacking = collection(tmp_path / "in", ["a.wav,train"], "path,split")
    with pytest.raises(
        DataError, match=f"lacks the column 'corpus'; its first line must name .*{columns}"
    ):
        speech.prepare(lacking, tmp_path / "out")
    with pytest.raises(DataError, match=r"line 3: the column 'speaker' is empty; complete"):
        speech.prepare(collection(tmp_path / "in", [LINES[0], "a.wav,x,,,,,"]), tmp_path / "out")
    with pytest.raises(DataError, match=r"manifest\.csv: "):
        speech.prepare(collection(tmp_path / "in", []), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- piano ------------------------------------------------------------------------------------


def midi(*pitches: int) -> bytes:
    """A format 0 file: each note lasts half a second (a quarter at 120 per minute)."""
    quarter = 480
    track = b"\x00\xc0\x00"  # program 0: grand piano
    for pitch in pitches:
        track += bytes([0x00, 0x90, pitch, 0x60])
        track += bytes([0x80 | quarter >> 7, quarter & 0x7F, 0x80, pitch, 0x40])
    track += b"\x00\xff\x2f\x00"
    header = struct.pack(">4sIHHH", b"MThd", 6, 0, 1, quarter)
    return header + struct.pack(">4sI", b"MTrk", len(track)) + track


def scores(folder: Path, **files: bytes) -> Path:
    (folder / "midi").mkdir(parents=True, exist_ok=True)
    lines = ["path,composer,split"]
    for name, data in files.items():
        (folder / "midi" / f"{name}.mid").write_bytes(data)
        lines.append(f"midi/{name}.mid,someone,{'valid' if name == 'valid' else 'train'}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


def installed() -> bool:
    try:
        piano.find_soundfont()
    except DataError:
        return False
    return True


needs_fluidsynth = pytest.mark.skipif(
    not installed(), reason="FluidSynth or its soundfont is not installed"
)


@needs_fluidsynth
def test_scores_are_rendered_once(tmp_path: Path) -> None:
    source = scores(tmp_path / "in", piece=midi(69), valid=midi(60, 64))
    told: list[tuple[str, int, int]] = []
    path = piano.prepare(source, tmp_path / "out", lambda *what: told.append(what))
    assert told == [("render", 1, 2), ("render", 2, 2)]
    (train,), (valid,) = load_recordings(path, "train"), load_recordings(path, "valid")
    assert train.path == tmp_path / "out" / "audio" / "piece.flac"
    assert (train.group, valid.group) == ("piece", "valid")
    info = soundfile.info(train.path)
    assert (info.samplerate, info.channels, info.format) == (16_000, 1, "FLAC")
    assert train.seconds == pytest.approx(info.duration, abs=0.001) and train.seconds > 0.5
    wave, rate = soundfile.read(train.path)
    assert 0.01 < abs(wave).max() <= 0.951
    spectrum = abs(numpy.fft.rfft(wave[: rate // 2] * numpy.hanning(rate // 2)))
    assert spectrum.argmax() * 2 == pytest.approx(440, abs=4)  # key 69 is A4
    assert sorted(p.name for p in (tmp_path / "out" / "audio").iterdir()) == [
        "piece.flac",
        "valid.flac",
    ]
    stamp, told[:] = train.path.stat().st_mtime_ns, []
    assert piano.prepare(source, tmp_path / "out", lambda *what: told.append(what)) == path
    assert told == [] and train.path.stat().st_mtime_ns == stamp


@needs_fluidsynth
def test_a_score_that_was_added_is_rendered_alone(tmp_path: Path) -> None:
    piano.prepare(scores(tmp_path / "in", a=midi(60)), tmp_path / "out")
    told: list[tuple[str, int, int]] = []
    source = scores(tmp_path / "in", a=midi(60), b=midi(62))
    path = piano.prepare(source, tmp_path / "out", lambda *what: told.append(what))
    assert told == [("render", 1, 1)] and len(rows(path)) == 2


@needs_fluidsynth
@pytest.mark.parametrize("what", ["missing", "broken"])
def test_a_score_that_cannot_be_rendered_is_named(tmp_path: Path, what: str) -> None:
    source = scores(tmp_path / "in", a=midi(60), b=b"this is no MIDI file")
    if what == "missing":
        (source / "midi" / "b.mid").unlink()
    problem = "does not exist" if what == "missing" else "cannot be rendered"
    with pytest.raises(DataError, match=rf"{source}/midi/b\.mid: {problem}.*; check the"):
        piano.prepare(source, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out" / "audio").iterdir()] == ["a.flac"]
    assert not (tmp_path / "out" / "manifest.csv").exists()


@needs_fluidsynth
def test_two_scores_of_one_name_are_refused(tmp_path: Path) -> None:
    """Else one would be trained on under both names, perhaps in both splits."""
    source = scores(tmp_path / "in", a=midi(60))
    (source / "manifest.csv").write_text("path,split\nmidi/a.mid,train\nother/a.mid,valid\n")
    with pytest.raises(DataError, match="lists two files called 'a'; rename one of them"):
        piano.prepare(source, tmp_path / "out")


def test_without_fluidsynth_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = scores(tmp_path / "in", a=midi(60))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(DataError, match=r"^fluidsynth: .* not installed; install both .*apt-get"):
        piano.prepare(source, tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setattr(piano, "SOUNDFONTS", (tmp_path / "none.sf2",))
    with pytest.raises(DataError, match="its soundfont is not installed"):
        piano.prepare(source, tmp_path / "out")


def test_a_source_without_scores_says_what_is_expected(tmp_path: Path) -> None:
    for source, problem in (
        (tmp_path / "none", "does not exist"),
        (Path(__file__), "is a file"),
        (tmp_path, "holds no MIDI file"),
        (collection(tmp_path / "bad", ["a.mid"], "file"), "lacks the column 'path'"),
    ):
        with pytest.raises(DataError, match=rf"{problem}; .*(MIDI files \(.mid, .midi\)|path)"):
            piano.prepare(source, tmp_path / "out")


def test_a_folder_of_scores_needs_no_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is a piece of its own; some pieces are held out."""

    def render(score: Path, target: Path, font: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(target, numpy.full(8000, 0.1), 16_000)

    monkeypatch.setattr(piano, "render", render)
    monkeypatch.setattr(piano, "find_soundfont", lambda: Path("font.sf2"))
    folder = tmp_path / "in"
    for name in (
        "bach/one.mid",
        "bach/two.MIDI",
        "satie/one.mid",
        "satie/.hidden.mid",
        "notes.txt",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    path = piano.prepare(folder, tmp_path / "out")
    groups = {
        split: [recording.group for recording in load_recordings(path, split)]  # type: ignore[arg-type]
        for split in ("train", "valid")
    }
    assert sorted(groups["train"] + groups["valid"]) == ["bach/one", "bach/two", "satie/one"]
    assert len(groups["valid"]) == 1
    (folder / "bach" / "one.midi").write_bytes(b"")
    with pytest.raises(DataError, match="lists two files called 'bach/one'; rename one"):
        piano.prepare(folder, tmp_path / "out")
