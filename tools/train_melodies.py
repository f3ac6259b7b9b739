"""Train the pipeline `piano` again, on tokens of notes: the second half of make train-small-piano.

    python tools/train_melodies.py SOURCE OUTPUT [KEY=VALUE ...]     (scores/ runs/small-piano)

SOURCE is a folder of MIDI files with manifest.csv (path, split); OUTPUT is that of train_small.py,
whose codec and stages are used. KEY=VALUE overrides the config of the semantic tokenizer or of a
stage, or one of render.fonts (soundfonts, separated by commas) and notes.steps. Needs the program
fluidsynth. The same command goes on where it was stopped.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from train_small import SHIP, run, save, segue, settings, taken

TOOLS = Path(__file__).parent
FONTS = "/usr/share/sounds/sf2/FluidR3_GM.sf2"
PART = "semantic_tokenizer"
FITTED = 5  # clusters are fitted on every fifth piece


def main(arguments: Sequence[str]) -> None:
    if len(arguments) < 2:
        sys.exit(__doc__)
    source, output, values = Path(arguments[0]), Path(arguments[1]), list(arguments[2:])
    fonts = taken(values, "render.fonts", FONTS).split(",")
    steps = taken(values, "notes.steps", "400")
    rendered = output / "rendered"
    # As written, and once more in another key and tempo.
    run(TOOLS / "render_piano.py", source, rendered, "--copies", "2", "--fonts", *fonts)
    tokenizer = fitted(rendered, output, steps, values)
    starts = output / "starts"
    for name, stage, times in (
        ("semantic", output / "scoreless/stages/semantic", "2"),
        ("acoustic", output / "stages/pipeline/stages/acoustic", "1"),  # before it filled masks
    ):
        if not (starts / name).exists():
            run(TOOLS / "seed_stage.py", stage, tokenizer, starts / name, times)
    chosen = [
        f"semantic_tokenizer.checkpoint={tokenizer.resolve()}",
        f"codec.checkpoint={(output / 'tokenizers/rounded/codec').resolve()}",
        f"stages.semantic.lm.training.start_from={(starts / 'semantic').resolve()}",
        f"stages.acoustic.lm.training.start_from={(starts / 'acoustic').resolve()}",
        *(value for value in values if not value.startswith(PART)),
    ]
    places = ("--data", rendered / "manifest.csv", "-o", output / "melodies")
    segue("train", "all", "--config", "piano/trained_tokenizers", *places, *settings(chosen))
    save(output / "melodies" / "pipeline", output / "pipeline")


def fitted(rendered: Path, output: Path, steps: str, values: Sequence[str]) -> Path:
    """Teach the network to transcribe and fit the clusters; return the tokenizer's folder."""
    notes, tokens = output / "notes", output / "tokenizers/notes"
    rounded = output / "tokenizers/rounded/notes"
    if not notes.exists():
        run(TOOLS / "train_notes.py", rendered, notes, "--steps", steps)
    if not rounded.exists():
        manifest = rendered / "fit.csv"
        write_some(rendered / "manifest.csv", manifest)
        wanted = [f"{PART}.checkpoint={notes.resolve()}"]
        wanted += [value for value in values if value.startswith(PART)]
        places = ("--config", "piano/trained_tokenizers", "--data", manifest, "-o", tokens)
        segue("train", PART, *places, *settings(wanted))
        run(SHIP, PART, tokens / PART, rounded)
    return rounded


def write_some(manifest: Path, target: Path) -> None:
    """Write a manifest of every fifth piece to learn from, and of two held-out ones."""
    with manifest.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    held_out = [row for row in rows if row["split"] == "valid"]
    chosen = [row for row in rows if row["split"] != "valid"][::FITTED] + held_out[:2]
    with target.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(chosen)


if __name__ == "__main__":
    main(sys.argv[1:])
