"""Read stories aloud with synthetic voices, as speech to train on.

    python tools/prepare_stories.py piper TEXT OUTPUT --voice en_US-joe-medium.onnx --hours 10
    python tools/prepare_stories.py kokoro TEXT OUTPUT --voice kokoro.onnx --styles voices/

TEXT is a table of tab-separated columns `book` and `sentence`. OUTPUT gets audio at 16 kHz and
manifest.csv (path, split, group, duration_s, engine, text), which `--data` of `segue train` takes.
Each speaker has a voice, a pace, a room, a level and a noise of its own, drawn from the seed; a
voice of Kokoro is a mixture of the styles in --styles. One book is held out, and so are the
speakers who read it. The same command goes on where it was stopped, and the same seed gives the
same speech. Needs soundfile, soxr, and piper-tts or kokoro-onnx.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import soundfile
import soxr

from segue.core.files import atomic_path

RATE = 16000
Samples = np.ndarray[Any, np.dtype[np.float32]]
#: Speaks a text with a voice; returns samples and their rate.
Engine = Callable[[str, "Speaker"], tuple[Samples, int]]


@dataclass(frozen=True)
class Speaker:
    """One reader in one room.

    Attributes:
        name: unique in OUTPUT.
        split: train or valid.
        weights: share of each style in the voice.
        language: of the pronunciation, as espeak names it.
        pace: speed of speaking.
        size: factor by which pitch and formants are moved.
        level: RMS of the speech, in dB of full scale.
        reverberation: seconds until the room's echo has fallen by 60 dB; 0 for none.
        echo: level of the room's echo against the direct sound, in dB.
        noise: level of stationary noise, in dB of the speech.
        tilt: dB per octave by which the recording's spectrum is tilted.
    """

    name: str
    split: str
    weights: tuple[float, ...]
    language: str
    pace: float
    size: float
    level: float
    reverberation: float
    echo: float
    noise: float
    tilt: float


def draw_speaker(
    engine: str, seed: int, number: int, every: int, styles: Sequence[str], levels: Sequence[float]
) -> Speaker:
    """Return the speaker of a number; each ``every``-th one is held out."""
    random = np.random.default_rng([seed, number, *engine.encode()])
    weights = np.zeros(len(styles))
    language = "en-us"
    if styles:
        first = styles[int(random.integers(len(styles)))]
        # Mixtures within a sex sound like people; a few across it widen the range.
        alike = [i for i, s in enumerate(styles) if s[1] == first[1] or random.random() < 0.1]
        chosen = random.choice(
            alike, size=min(len(alike), int(random.integers(1, 4))), replace=False
        )
        weights[chosen] = random.dirichlet(np.full(len(chosen), 2.0))
        language = "en-gb" if styles[int(weights.argmax())].startswith("b") else "en-us"
    in_room = random.random() < 0.5
    return Speaker(
        name=f"{engine}-{number:05d}",
        split="valid" if number % every == every - 1 else "train",
        weights=tuple(float(w) for w in weights),
        language=language,
        pace=float(random.uniform(0.88, 1.18)),
        size=float(np.exp(random.uniform(-0.09, 0.09))),
        level=float(random.uniform(*levels)),
        reverberation=float(random.uniform(0.1, 0.45)) if in_room else 0.0,
        echo=float(random.uniform(-16.0, -4.0)),
        noise=float(random.uniform(-60.0, -28.0)),
        tilt=float(random.normal(0.0, 0.7)),
    )


def record(wave: Samples, rate: int, speaker: Speaker, seed: Sequence[int]) -> Samples:
    """Return the speech at ``RATE`` as it sounds in the speaker's room, at its level."""
    wave = soxr.resample(wave, rate * speaker.size, RATE).astype(np.float32)
    count = len(wave)
    if speaker.reverberation:
        wave = _in_room(wave, speaker, np.random.default_rng(list(speaker.name.encode())))
    spectrum = np.fft.rfft(wave, n=2 * count)
    frequency = np.maximum(np.fft.rfftfreq(2 * count, 1 / RATE), 50.0)
    spectrum *= 10 ** (speaker.tilt * np.log2(frequency / 1000.0) / 20)
    wave = np.fft.irfft(spectrum)[:count]
    wave *= 10 ** (speaker.level / 20) / max(1e-6, float(np.sqrt(np.mean(wave**2))))
    noise = np.random.default_rng(seed).standard_normal(count)
    wave = wave + noise * 10 ** ((speaker.level + speaker.noise) / 20)
    peak = float(np.abs(wave).max())
    return (wave * min(1.0, 0.98 / max(peak, 1e-6))).astype(np.float32)


def _in_room(wave: Samples, speaker: Speaker, random: np.random.Generator) -> Samples:
    """Add an echo of noise that decays exponentially."""
    length = int(RATE * speaker.reverberation)
    tail = random.standard_normal(length) * 10 ** (-3.0 * np.arange(length) / length)
    tail[: RATE // 200] = 0.0
    tail *= 10 ** (speaker.echo / 20) / np.sqrt(np.sum(tail**2))
    tail[0] = 1.0
    size = len(wave) + length
    heard = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(tail, size), size)
    return heard[: len(wave)].astype(np.float32)


def session(model: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def piper(model: Path, threads: int) -> Engine:
    import json

    from piper import PiperVoice, SynthesisConfig
    from piper.config import PiperConfig

    config = PiperConfig.from_dict(json.loads(Path(f"{model}.json").read_text("utf-8")))
    voice = PiperVoice(session=session(model, threads), config=config)

    def speak(text: str, speaker: Speaker) -> tuple[Samples, int]:
        chunks = list(voice.synthesize(text, SynthesisConfig(length_scale=1 / speaker.pace)))
        rate = chunks[0].sample_rate
        pause = np.zeros(int(0.2 * rate), np.float32)
        parts = [part for chunk in chunks for part in (chunk.audio_float_array, pause)]
        return np.concatenate(parts), rate

    return speak


def kokoro(model: Path, styles: Path, names: Sequence[str], threads: int, output: Path) -> Engine:
    from kokoro_onnx import Kokoro

    tables = [np.fromfile(styles / f"{name}.bin", np.float32).reshape(-1, 1, 256) for name in names]
    with atomic_path(output / "styles.npz") as path:
        np.savez(path, **dict(zip(names, tables, strict=True)))
    voice = Kokoro.from_session(session(model, threads), str(output / "styles.npz"))

    def speak(text: str, speaker: Speaker) -> tuple[Samples, int]:
        mixed = sum(w * table for w, table in zip(speaker.weights, tables, strict=True) if w)
        return voice.create(text, mixed, speed=speaker.pace, lang=speaker.language)

    return speak


def read_books(path: Path, longest: int) -> dict[str, list[str]]:
    """Return each book's passages: sentences joined in order, of at most so many letters."""
    books: dict[str, list[str]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            passages = books.setdefault(row["book"], [])
            sentence = re.sub(r"\b[A-Z]{2,}\b", lambda word: word[0].lower(), row["sentence"])
            if passages and len(passages[-1]) + len(sentence) < longest:
                passages[-1] += " " + sentence
            else:
                passages.append(sentence)
    return books


def split_texts(books: dict[str, list[str]], seed: int) -> dict[str, list[str]]:
    """Return the passages of each split in random order; one book is held out."""
    held = min(books, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).hexdigest())
    found = {
        "train": [p for b in sorted(books) if b != held for p in books[b]],
        "valid": books[held],
    }
    random = np.random.default_rng(seed)
    return {
        split: [texts[i] for i in random.permutation(len(texts))] for split, texts in found.items()
    }


def write_manifest(output: Path, rows: Sequence[Sequence[Any]]) -> None:
    with (
        atomic_path(output / "manifest.csv") as path,
        path.open("w", encoding="utf-8", newline="") as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("path", "split", "group", "duration_s", "engine", "text"))
        table.writerows(rows)


def read_aloud(arguments: argparse.Namespace) -> None:
    output, name = Path(arguments.output), arguments.engine
    output.mkdir(parents=True, exist_ok=True)
    texts = split_texts(read_books(Path(arguments.text), arguments.longest), arguments.seed)
    styles: list[str] = []
    if name == "kokoro":
        styles = sorted(path.stem for path in Path(arguments.styles).glob("[ab][fm]_*.bin"))
        engine = kokoro(arguments.voice, arguments.styles, styles, arguments.threads, output)
    else:
        engine = piper(arguments.voice, arguments.threads)
    rows: list[Sequence[Any]] = []
    seconds, number = 0.0, 0
    taken = {"train": arguments.first, "valid": arguments.first}
    while seconds < 3600 * arguments.hours:
        speaker = draw_speaker(
            name, arguments.seed, number, arguments.held_out_every, styles, arguments.levels
        )
        for _ in range(arguments.passages):
            place = taken[speaker.split]
            text = texts[speaker.split][place % len(texts[speaker.split])]
            taken[speaker.split] += 1
            path = output / speaker.name / f"{place:06d}.flac"
            if not path.exists():
                wave, rate = engine(text, speaker)
                wave = record(wave, rate, speaker, [arguments.seed, number, place])
                with atomic_path(path) as temporary:
                    soundfile.write(temporary, wave, RATE)
            length = soundfile.info(path).duration
            seconds += length
            where = path.relative_to(output)
            rows.append((where, speaker.split, speaker.name, f"{length:.3f}", name, text))
        number += 1
        if number % 10 == 0:
            write_manifest(output, rows)
            print(f"{seconds / 3600:.2f} hours, {number} speakers", flush=True)
    write_manifest(output, rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engine", choices=("piper", "kokoro"))
    parser.add_argument("text", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--voice", type=Path, required=True, help="the model's ONNX file")
    parser.add_argument("--styles", type=Path, help="folder of Kokoro's voices, one .bin each")
    parser.add_argument("--hours", type=float, default=1.0, help="of speech, all in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="passage to begin with")
    parser.add_argument("--passages", type=int, default=8, help="that a speaker reads")
    parser.add_argument("--longest", type=int, default=240, help="letters of a passage")
    parser.add_argument("--held-out-every", type=int, default=20, help="speakers per held-out one")
    parser.add_argument(
        "--levels", type=float, nargs=2, default=(-26.0, -26.0), metavar=("LOW", "HIGH"),
        help="of the speakers, in dB of full scale; pipelines bring prompts to -26",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=1)
    read_aloud(parser.parse_args())


if __name__ == "__main__":
    main()
