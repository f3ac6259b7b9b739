"""Notes of MIDI files, and what tokens say of them."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import pytest
import soundfile
import torch

from segue.core.audio import Audio
from segue.core.errors import DataError
from segue.core.metrics import Note
from segue.data.recordings import Recording
from segue.evaluation.pitches import (
    average_precision,
    evaluate_pitches,
    fitted,
    judged,
    pitch_classes,
    read_notes,
    together,
)
from segue.evaluation.representations import Representation


def number(value: int) -> bytes:
    """A MIDI number of variable length."""
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.insert(0, value & 0x7F | 0x80)
    return bytes(groups)


def midi(path: Path, *tracks: list[tuple[int, bytes]], division: int = 480) -> Path:
    data = b"MThd" + struct.pack(">IHHH", 6, 1, len(tracks), division)
    for events in tracks:
        body = b"".join(number(delta) + message for delta, message in events)
        data += b"MTrk" + struct.pack(">I", len(body)) + body
    path.write_bytes(data)
    return path


ON, OFF = 0x90, 0x80


def test_notes_of_a_file(tmp_path: Path) -> None:
    path = midi(
        tmp_path / "a.mid",
        [(0, b"\xff\x51\x03" + (250_000).to_bytes(3, "big")), (960, b"\xff\x51\x03\x0f\x42\x40")],
        [
            (0, b"\xff\x03\x04name"),
            (0, bytes([ON, 60, 90])),
            (480, bytes([64, 90])),  # the status byte is left out: it is as before
            (480, bytes([OFF, 60, 0])),
            (480, bytes([ON, 64, 0])),  # silent: the key is let go
            (0, b"\xf0\x02\x01\xf7"),
            (0, bytes([0xC0, 5])),
            (0, bytes([ON, 67, 80])),
            (480, b"\xff\x2f\x00"),
        ],
    )
    # 240 BPM for two beats, then 60 BPM; the last key is never let go and lasts no time.
    assert read_notes(path) == [Note(60, 0.0, 0.5), Note(64, 0.25, 1.5)]


def test_the_pedal_holds_keys(tmp_path: Path) -> None:
    down, up = bytes([0xB0, 64, 127]), bytes([0xB0, 64, 0])
    path = midi(
        tmp_path / "a.mid",
        [
            (0, down),
            (0, bytes([ON, 60, 90])),
            (480, bytes([OFF, 60, 0])),
            (0, bytes([ON, 64, 90])),
            (480, up),
            (480, bytes([OFF, 64, 0])),
            (0, bytes([0x99, 40, 90])),
            (480, bytes([0x89, 40, 0])),  # a drum
        ],
    )
    assert read_notes(path) == [Note(60, 0.0, 1.0), Note(64, 0.5, 1.5)]


def test_a_key_struck_again_under_the_pedal(tmp_path: Path) -> None:
    path = midi(
        tmp_path / "a.mid",
        [
            (0, bytes([0xB0, 64, 127])),
            (0, bytes([ON, 60, 90])),
            (480, bytes([OFF, 60, 0])),
            (480, bytes([ON, 60, 90])),
            (480, bytes([0xB0, 64, 0])),
            (480, bytes([OFF, 60, 0])),
        ],
    )
    assert read_notes(path) == [Note(60, 0.0, 1.0), Note(60, 1.0, 2.0)]


@pytest.mark.parametrize("data", [b"", b"RIFF", b"MThd", b"MThd\0\0\0\x06\0\1\0\1\xe8\x28"])
def test_what_is_no_midi_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.mid").write_bytes(data)
    with pytest.raises(DataError, match="is not a MIDI file"):
        read_notes(tmp_path / "a.mid")


def test_a_note_on_without_velocity_ends_before_what_starts(tmp_path: Path) -> None:
    path = midi(
        tmp_path / "a.mid",
        [
            (0, bytes([ON, 60, 90])),
            (480, bytes([ON, 60, 90])),  # written before the end of the note that it repeats
            (0, bytes([ON, 60, 0])),
            (480, bytes([ON, 60, 0])),
        ],
    )
    assert read_notes(path) == [Note(60, 0.0, 0.5), Note(60, 0.5, 1.0)]


def test_midi_files_that_are_broken(tmp_path: Path) -> None:
    path = midi(tmp_path / "a.mid", [(0, bytes([ON, 60, 90])), (480, bytes([OFF, 60, 0]))])
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"a\.mid: is not a MIDI file"):
            read_notes(path)
    for events in ([(0, bytes([ON, 60, 90])), (0, bytes([OFF, 60]))], [(0, bytes([60, 90]))]):
        with pytest.raises(DataError, match="is not a MIDI file"):
            read_notes(midi(path, events))
    with pytest.raises(DataError, match="no ticks per beat"):
        read_notes(midi(path, [(0, bytes([ON, 60, 90])), (480, bytes([OFF, 60, 0]))], division=0))
    # Type 2: tracks one after another, with no common time.
    path.write_bytes(whole[:9] + b"\2" + whole[10:])
    with pytest.raises(DataError, match="asynchronous"):
        read_notes(path)


def test_classes_that_sound_in_the_middle_of_a_frame() -> None:
    active = pitch_classes([Note(60, 0.0, 0.2), Note(73, 0.14, 0.9)], 4, 10)
    assert active[:, 0].tolist() == [True, True, False, False]
    assert active[:, 1].tolist() == [False, True, True, True]
    assert int(active.sum()) == 5


def test_average_precision_of_known_orders() -> None:
    truth = torch.tensor([True, False, True, False])
    assert average_precision(torch.tensor([4.0, 3.0, 2.0, 1.0]), truth) == pytest.approx(
        (1 + 2 / 3) / 2
    )
    assert average_precision(torch.tensor([2.0, 1.0, 2.0, 1.0]), truth) == 1.0
    assert average_precision(torch.zeros(4), truth) == 0.5  # all tied: the share of true ones
    assert math.isnan(average_precision(torch.zeros(2), torch.zeros(2, dtype=torch.bool)))


def test_chances_of_known_counts() -> None:
    active = torch.zeros(200, 12, dtype=torch.bool)
    active[:100, 3] = True
    ids = torch.tensor([0] * 100 + [1] * 100)[:, None]
    (chances,), prior = fitted([(ids, active)], 3, 1)
    assert prior[3] == pytest.approx(0.5) and prior[0] < 0.01
    assert chances[0, 3] > 0.99 and chances[1, 3] < 0.01
    assert torch.equal(chances[2], prior)  # a token that never occurred
    found = together(chances[None], prior, ids, 1.0)
    torch.testing.assert_close(found, chances[ids[:, 0]])
    figures = judged(found, prior, active)
    assert figures["bits"] == pytest.approx(1, abs=0.05)
    assert figures["f1"] == figures["average_precision"] == 1


def test_levels_that_say_different_things_add_up() -> None:
    """One level tells one class, the other one another; a copy of a level tells nothing new."""
    ids = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]] * 100)
    active = torch.zeros(400, 12, dtype=torch.bool)
    active[:, 3], active[:, 5] = ids[:, 0] > 0, ids[:, 1] > 0
    chances, prior = fitted([(ids, active)], 2, 1)
    one = judged(together(chances[:1], prior, ids[:, :1], 1.0), prior, active)
    both = judged(together(chances, prior, ids, 1.0), prior, active)
    assert one["bits"] == pytest.approx(1, abs=0.05) and both["bits"] == pytest.approx(2, abs=0.1)
    copied = together(chances[[0, 0]], prior, ids[:, [0, 0]], 0.5)
    torch.testing.assert_close(copied, together(chances[:1], prior, ids[:, :1], 1.0))


def fake(name: str, *, told: bool) -> Representation:
    """Tokens that are the sign of the audio, or nothing of it."""

    def frames(audio: Audio) -> torch.Tensor:
        middle = audio.wave[80::160]
        ids = (middle > 0).long() if told else torch.zeros(len(middle), dtype=torch.long)
        return ids[:, None]

    return Representation(name, 100.0, "hamming", frames, 2)


def test_tokens_that_follow_the_notes_tell_them(tmp_path: Path) -> None:
    recordings, scores = [], {}
    for index in range(4):
        # A note for half of each piece: first or last, where the audio is positive.
        first = index % 2 == 0
        events = [(0 if first else 960, bytes([ON, 62, 90])), (960, bytes([OFF, 62, 0]))]
        scores[f"p{index}"] = midi(tmp_path / f"p{index}.mid", events)
        half = torch.full((16_000,), 0.5)
        wave = torch.cat([half, -half] if first else [-half, half])
        soundfile.write(tmp_path / f"p{index}.wav", wave.numpy(), 16_000)
        recordings.append(Recording(tmp_path / f"p{index}.wav", 2.0, "", "valid"))
    recordings.append(Recording(tmp_path / "noscore.wav", 2.0, "", "valid"))
    for stem in ("noaudio", "broken"):
        recordings.append(Recording(tmp_path / f"{stem}.wav", 2.0, "", "valid"))
    scores["noaudio"] = scores["p0"]
    soundfile.write(tmp_path / "broken.wav", torch.zeros(16_000).numpy(), 16_000)
    scores["broken"] = tmp_path / "broken.mid"
    scores["broken"].write_bytes(scores["p0"].read_bytes()[:-1])
    tokens = [fake("sign", told=True), fake("none", told=False)]
    found = evaluate_pitches(recordings, scores, tokens, seconds=10)
    assert (found["pieces"], found["unusable"]) == (4, 3)
    sign, none = found["representations"]["sign"], found["representations"]["none"]
    assert sign["bits"]["mean"] == pytest.approx(1, abs=0.05) and sign["f1"]["lowest"] == 1
    assert none["bits"]["mean"] == pytest.approx(0, abs=0.03)  # smoothing
    assert none["average_precision"]["mean"] == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(DataError, match="fewer than two have a MIDI file"):
        evaluate_pitches(recordings[:1], scores, tokens, seconds=10)
