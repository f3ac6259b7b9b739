"""Make the prompts that ship with Segue: a sentence of LibriSpeech and a piano phrase of our own.

    python tools/make_prompts.py SPEECH   (../shared/data/speech)

SPEECH holds libri/, LibriSpeech's recordings (V. Panayotov et al., CC BY 4.0). Needs FluidSynth
and its General MIDI soundfont.
"""

from __future__ import annotations

import struct
import sys
import tempfile
from pathlib import Path

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


def midi_file(
    notes: list[tuple[float, float, tuple[int, ...], int]], tempo: int = 600_000
) -> bytes:
    """Return a one-track MIDI file."""
    events = []
    for beat, length, pitches, velocity in notes:
        for pitch in pitches:
            events.append((round(beat * BEAT), bytes((0x90, pitch, velocity))))
            events.append((round((beat + length) * BEAT), bytes((0x80, pitch, 0))))
    track = b"\x00\xff\x51\x03" + tempo.to_bytes(3, "big")
    now = 0
    for time, message in sorted(events):
        track += _variable(time - now) + message
        now = time
    track += b"\x00\xff\x2f\x00"
    header = b"MThd" + struct.pack(">IHHH", 6, 0, 1, BEAT)
    return header + b"MTrk" + struct.pack(">I", len(track)) + track


def _variable(value: int) -> bytes:
    """Return a number as MIDI writes it, in as many bytes as it needs."""
    digits = [value & 0x7F]
    while value := value >> 7:
        digits.append(value & 0x7F | 0x80)
    return bytes(reversed(digits))


def make_speech(source: Path, target: Path) -> None:
    audio = read_audio(source, first_seconds=SECONDS)
    soundfile.write(target, audio.wave.numpy(), audio.sample_rate, subtype="PCM_16")


def make_piano(target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        midi, raw = Path(folder) / "phrase.mid", Path(folder) / "phrase.flac"
        midi.write_bytes(midi_file(PHRASE))
        render(midi, raw, find_soundfont())
        audio = read_audio(raw)
    wave = audio.wave[: 6 * SAMPLE_RATE]
    soundfile.write(target, (0.5 * wave / wave.abs().max()).numpy(), SAMPLE_RATE, subtype="PCM_16")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    make_speech(Path(sys.argv[1]) / SENTENCE, DOMAINS / "speech" / "prompt.flac")
    make_piano(DOMAINS / "piano" / "prompt.flac")
