"""The tools that make speech and music to train on."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

TOOLS = Path(__file__).parents[1] / "tools"


def tool(name: str, *needs: str) -> ModuleType:
    for package in needs:
        pytest.importorskip(package)
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def stories() -> ModuleType:
    return tool("prepare_stories", "onnxruntime", "soxr")


def test_speakers_depend_on_the_seed_and_their_number_alone(stories: ModuleType) -> None:
    styles = ["af_one", "af_two", "am_three", "bm_four"]

    def draw(seed: int, number: int) -> object:
        return stories.draw_speaker("kokoro", seed, number, 10, styles, (-26.0, -20.0))

    assert draw(1, 5) == draw(1, 5) != draw(2, 5)
    speakers = [draw(0, number) for number in range(20)]
    assert len({speaker.name for speaker in speakers}) == 20
    assert [speaker.split for speaker in speakers].count("valid") == 2
    for speaker in speakers:
        assert sum(speaker.weights) == pytest.approx(1) and -26 <= speaker.level <= -20
        british = styles[int(np.argmax(speaker.weights))].startswith("b")
        assert speaker.language == ("en-gb" if british else "en-us")


def test_speech_is_brought_to_its_speakers_level(stories: ModuleType) -> None:
    speaker = stories.draw_speaker("piper", 0, 1, 10, [], (-26.0, -26.0))
    tone = np.sin(np.arange(22_050) * 0.1).astype(np.float32)
    heard = stories.record(tone, 22_050, speaker, [0])
    assert len(heard) == pytest.approx(16_000 / speaker.size, abs=2)
    assert 20 * np.log10(np.sqrt(np.mean(heard**2))) == pytest.approx(-26, abs=0.5)
    assert np.array_equal(heard, stories.record(tone, 22_050, speaker, [0]))


def test_texts_of_a_book_are_held_out(stories: ModuleType, tmp_path: Path) -> None:
    table = tmp_path / "stories.tsv"
    lines = [
        f"book{b}\tSentence {n} of book {b} is VERY short." for b in range(3) for n in range(9)
    ]
    table.write_text("book\tsentence\n" + "\n".join(lines) + "\n", "utf-8")
    books = stories.read_books(table, 80)
    assert books["book0"][0] == (
        "Sentence 0 of book 0 is very short. Sentence 1 of book 0 is very short."
    )
    texts = stories.split_texts(books, 0)
    assert len(texts["train"]) == 2 * len(texts["valid"]) == 10
    assert not set(texts["train"]) & set(texts["valid"])
    assert texts == stories.split_texts(books, 0)


def test_scores_in_another_key_and_tempo(tmp_path: Path) -> None:
    piano, mido = tool("render_piano", "mido"), pytest.importorskip("mido")
    score = mido.MidiFile()
    score.tracks.append(
        mido.MidiTrack(
            [
                mido.Message("note_on", note=60, velocity=80, time=0),
                mido.Message("note_off", note=60, time=480),
                mido.Message("note_on", note=106, velocity=80, time=0),
                mido.Message("note_off", note=106, time=480),
            ]
        )
    )
    score.save(tmp_path / "in.mid")
    manner = piano.Manner(4, 1.25, Path("font"), None, False, -80.0)
    piano.rewrite(tmp_path / "in.mid", tmp_path / "out.mid", manner)
    changed = mido.MidiFile(tmp_path / "out.mid")
    notes = [message.note for message in changed if message.type == "note_on"]
    assert notes == [64, 98]  # 110 is beyond the keyboard
    assert changed.length == pytest.approx(score.length / 1.25, rel=1e-3)


def test_manners_depend_on_the_seed_and_the_piece_alone() -> None:
    piano = tool("render_piano", "mido")
    fonts = [Path("a"), Path("b")]
    first = piano.draw_manner("piece", 1, fonts, 0, False)
    assert first == piano.draw_manner("piece", 1, fonts, 0, False)
    assert first != piano.draw_manner("piece", 2, fonts, 0, False)
    written = piano.draw_manner("piece", 1, fonts, 0, True)
    assert (written.semitones, written.tempo) == (0, 1.0) and written.font == first.font


def test_the_silence_after_the_last_note_is_cut() -> None:
    cut = tool("render_piano", "mido").without_end
    wave = np.zeros(48_000, dtype=np.float32)
    assert len(cut(wave)) == 48_000  # nothing but silence
    wave[1000] = wave[16_000] = 0.01
    assert len(cut(wave)) == 20_000
