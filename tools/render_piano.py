"""Render piano scores in many ways, as music to train on.

    python tools/render_piano.py SOURCE OUTPUT --fonts FluidR3_GM.sf2 other.sf2 --copies 3

SOURCE is a folder with manifest.csv (path, split) and MIDI files. Each copy of a piece gets a key,
a tempo, a soundfont and a room of its own, drawn from the seed and the piece's name; the first copy
keeps key and tempo, and of held-out pieces there is no other. OUTPUT gets audio/ at 16 kHz,
scores/ with the MIDI as it was rendered, and manifest.csv (path, split, group, duration_s, midi).
The same command goes on where it was stopped. Needs the program fluidsynth and the package mido.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import mido
import numpy as np
import soundfile

from segue.core.files import atomic_path

RATE = 16_000
KEYS = range(21, 109)  # of a piano
QUIET = 10 ** (-55 / 20)  # samples below are silence
DRUMS = 9  # the channel whose notes are not pitches


@dataclass(frozen=True)
class Manner:
    """How one copy of a piece is played and heard.

    Attributes:
        semitones: by which it is transposed.
        tempo: factor by which it is faster.
        font: soundfont.
        room: size of the room, 0 to 1; None for no reverberation.
        chorus: whether the synthesiser's chorus is on.
        noise: level of stationary noise, in dB of full scale.
    """

    semitones: int
    tempo: float
    font: Path
    room: float | None
    chorus: bool
    noise: float


def draw_manner(name: str, copy: int, fonts: list[Path], seed: int, as_written: bool) -> Manner:
    digest = hashlib.sha256(f"{seed} {name} {copy}".encode()).digest()
    random = np.random.default_rng(list(digest))
    semitones, tempo = int(random.integers(-5, 7)), float(np.exp(random.uniform(-0.15, 0.15)))
    font = fonts[int(random.integers(len(fonts)))]
    room = float(random.uniform(0.1, 0.8)) if random.random() < 0.7 else None
    chorus, noise = bool(random.random() < 0.3), float(random.uniform(-90.0, -65.0))
    if as_written:
        semitones, tempo = 0, 1.0
    return Manner(semitones, tempo, font, room, chorus, noise)


def rewrite(midi: Path, target: Path, manner: Manner) -> None:
    """Write a score in another key and tempo; notes beyond the keyboard go by octaves into it."""
    score = mido.MidiFile(midi, clip=True)
    for track in score.tracks:
        if not any(message.type == "set_tempo" for message in track) and track is score.tracks[0]:
            track.insert(0, mido.MetaMessage("set_tempo", tempo=500_000))
        for message in track:
            if message.type == "set_tempo":
                message.tempo = min(2**24 - 1, max(1, round(message.tempo / manner.tempo)))
            elif message.type in ("note_on", "note_off") and message.channel != DRUMS:
                message.note = into_keys(message.note + manner.semitones)
    with atomic_path(target) as temporary:
        score.save(temporary)


def into_keys(note: int) -> int:
    while note < KEYS.start:
        note += 12
    while note >= KEYS.stop:
        note -= 12
    return note


def render(midi: Path, target: Path, manner: Manner, level: float) -> None:
    """Render a score to mono at ``RATE``, at an RMS of ``level`` or less if it would clip."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.wav"
        reverb = ["-R", "0"] if manner.room is None else ["-R", "1"]
        if manner.room is not None:
            reverb += ["-o", f"synth.reverb.room-size={manner.room:.3f}"]
        command = [
            "fluidsynth", "-ni", "-q", "-g", "0.5", *reverb, "-C", str(int(manner.chorus)),
            "-r", str(RATE), "-F", str(raw), str(manner.font), str(midi),
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
        wave, _ = soundfile.read(raw, dtype="float32", always_2d=True)
    mono = wave.mean(axis=1)
    mono *= level / max(1e-6, float(np.sqrt(np.mean(mono**2))))
    mono = without_end(mono)
    noise = np.random.default_rng(len(mono)).standard_normal(len(mono))
    mono = mono + noise * 10 ** (manner.noise / 20)
    mono = (mono * min(1.0, 0.98 / max(1e-6, float(np.abs(mono).max())))).astype(np.float32)
    with atomic_path(target) as temporary:
        soundfile.write(temporary, mono, RATE, format="FLAC")


def without_end(wave: np.ndarray) -> np.ndarray:
    """Cut the silence after the last note: models that learn it stay silent once they are."""
    heard = np.flatnonzero(np.abs(wave) > QUIET)
    return wave[: heard[-1] + RATE // 4] if len(heard) else wave


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--fonts", type=Path, nargs="+", required=True)
    parser.add_argument("--copies", type=int, default=1, help="of each piece to train on")
    parser.add_argument("--level", type=float, default=0.01, help="RMS that pipelines expect")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with (arguments.source / "manifest.csv").open(encoding="utf-8", newline="") as file:
        pieces = list(csv.DictReader(file))
    rows = []
    for copy in range(arguments.copies):
        for piece in pieces:
            held_out = piece["split"] == "valid"
            if held_out and copy:
                continue
            source, stem = arguments.source / piece["path"], Path(piece["path"]).stem
            manner = draw_manner(stem, copy, arguments.fonts, arguments.seed, held_out or copy == 0)
            audio = arguments.output / "audio" / f"{stem}.{copy}.flac"
            score = arguments.output / "scores" / f"{stem}.{copy}.mid"
            if not score.exists():
                rewrite(source, score, manner)
            if not audio.exists():
                render(score, audio, manner, arguments.level)
            seconds = soundfile.info(audio).duration
            rows.append((f"audio/{audio.name}", piece["split"], f"{stem}.{copy}", f"{seconds:.3f}",
                         f"scores/{score.name}"))  # fmt: skip
        with (
            atomic_path(arguments.output / "manifest.csv") as path,
            path.open("w", encoding="utf-8", newline="") as file,
        ):
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("path", "split", "group", "duration_s", "midi"))
            table.writerows(rows)
        print(f"copy {copy + 1}: {len(rows)} recordings", flush=True)


if __name__ == "__main__":
    main()
