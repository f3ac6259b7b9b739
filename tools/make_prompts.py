"""Make the prompts that ship with Segue: a sentence of LibriSpeech and a piano phrase of our own.

    python tools/make_prompts.py SPEECH   (../shared/data/speech)

SPEECH holds libri/, LibriSpeech's recordings (V. Panayotov et al., CC BY 4.0). Needs FluidSynth,
its General MIDI soundfont and mido.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import mido
import soundfile

from segue.plugins.domains.piano.recipe import find_soundfont, render
from segue.sound.reading import read_audio

DOMAINS = Path(__file__).parent.parent / "plugins" / "domains"
SAMPLE_RATE = 16_000
#: A speaker that nothing was trained on, and the end of the first sentence in seconds.
SENTENCE, SECONDS = "libri/7635-105409-0000.flac", 5.2
BEAT = 480  # ticks
# A phrase in G major: (beat, length in beats, pitches, velocity).
PHRASE = [
    (0.0, 1.0, (43, 59, 62), 62), (0.0, 1.5, (74,), 80), (1.0, 1.0, (50, 59, 62), 52),
    (1.5, 0.5, (76,), 70), (2.0, 1.0, (48, 60, 64), 60), (2.0, 1.0, (79,), 84),
    (3.0, 1.0, (50, 57, 60), 54), (3.0, 1.0, (78,), 74), (4.0, 1.0, (43, 59, 62), 60),
    (4.0, 1.0, (74,), 78), (5.0, 1.0, (47, 59, 62), 52), (5.0, 0.5, (71,), 70),
    (5.5, 0.5, (72,), 70), (6.0, 1.0, (50, 57, 60), 58), (6.0, 2.0, (69,), 76),
    (7.0, 1.0, (50, 54, 60), 50), (8.0, 1.0, (52, 55, 59), 60), (8.0, 1.0, (67,), 78),
    (9.0, 1.0, (52, 55, 59), 50), (9.0, 1.0, (71,), 74),
]  # fmt: skip


def write_midi(target: Path, tempo: int = 600_000) -> None:
    """Write the phrase as a MIDI file of one track."""
    strikes = []  # tick, kind of message, pitch, velocity
    for beat, length, pitches, velocity in PHRASE:
        for pitch in pitches:
            strikes.append((round((beat + length) * BEAT), "note_off", pitch, 0))
            strikes.append((round(beat * BEAT), "note_on", pitch, velocity))
    track, now = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=tempo)]), 0
    for tick, kind, pitch, velocity in sorted(strikes):
        track.append(mido.Message(kind, note=pitch, velocity=velocity, time=tick - now))
        now = tick
    mido.MidiFile(type=0, ticks_per_beat=BEAT, tracks=[track]).save(target)


def make_speech(source: Path, target: Path) -> None:
    audio = read_audio(source, first_seconds=SECONDS)
    soundfile.write(target, audio.wave.numpy(), audio.sample_rate, subtype="PCM_16")


def make_piano(target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        midi, raw = Path(folder) / "phrase.mid", Path(folder) / "phrase.flac"
        write_midi(midi)
        render(midi, raw, find_soundfont())
        audio = read_audio(raw)
    wave = audio.wave[: 6 * SAMPLE_RATE]
    soundfile.write(target, (0.5 * wave / wave.abs().max()).numpy(), SAMPLE_RATE, subtype="PCM_16")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    make_speech(Path(sys.argv[1]) / SENTENCE, DOMAINS / "speech" / "prompt.flac")
    make_piano(DOMAINS / "piano" / "prompt.flac")
