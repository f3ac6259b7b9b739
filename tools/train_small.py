"""Train a domain's shipped pipelines again, by Segue's own commands.

    python tools/train_small.py DOMAIN SOURCE OUTPUT [KEY=VALUE ...]   (speech data/ runs/speech)

SOURCE is what `segue prepare DOMAIN` takes. KEY=VALUE overrides the config of the tokenizer or the
stage that it names: semantic, acoustic or one of the paper's cascade, such as coarse. Hours on a
CPU; the same command goes on where it was stopped. Stages are stored in eight bits as in what
ships. OUTPUT/tokenizers/rounded holds the tokenizers.

For piano, OUTPUT/pipeline is `piano`; SOURCE is rendered by tools/render_piano.py, as written and
once more in another key and tempo, with render.fonts=FONT,FONT (soundfonts). That needs the program
fluidsynth and the package mido. For speech, OUTPUT/textless is `speech/textless`, and beside it
lies the one after the paper's cascade; tools/train_words.py then makes OUTPUT/pipeline.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from segue.core.files import link_to
from segue.inference.pipeline import Pipeline
from segue.training.workspace import TOKENS

#: Overrides for a domain's tokenizers beside its config.
TOKENIZERS = {
    "speech": [
        "semantic_tokenizer.use=w2v_bert.v1",
        "semantic_tokenizer.options.num_clusters=512",
        "semantic_tokenizer.options.refine_at=1500",
        "semantic_tokenizer.training.steps=3000",
        "semantic_tokenizer.training.batch_size=8",
        "semantic_tokenizer.training.crop_seconds=4",
        "semantic_tokenizer.training.learning_rate=3.0e-3",
    ],
    "piano": [
        "semantic_tokenizer.use=register_kmeans.v1",
        "codec.options.num_levels=8",
        "codec.training.steps=4500",
    ],
}
#: Manifests that tokenizers are trained on: single words, too, for the semantic one of speech.
MANIFESTS = {
    "speech": {"semantic_tokenizer": "manifest-all.csv", "codec": "manifest.csv"},
    "piano": {"semantic_tokenizer": "manifest.csv", "codec": "manifest.csv"},
}
LEVELS = "8"  # of the codec that are kept
#: Stages that are trained for the pipeline after the paper's cascade.
FLAT = {"speech": ("coarse", "fine"), "piano": ()}
FONT = "/usr/share/sounds/sf2/FluidR3_GM.sf2"
SHIP = Path(__file__).with_name("ship_tokenizer.py")
RENDER = SHIP.with_name("render_piano.py")


def run(*command: str | Path) -> None:
    """Print a command and run it by this Python; end with its exit code if it fails."""
    print("$ python", *command, flush=True)
    if code := subprocess.run([sys.executable, *command], check=False).returncode:
        sys.exit(code)


def segue(*arguments: str | Path) -> None:
    run("-m", "segue", *arguments)


def settings(values: Sequence[str]) -> list[str]:
    return [text for value in values for text in ("--set", value)]


def taken(values: list[str], key: str, default: str) -> str:
    """Take a setting of this program out of the list."""
    found = next((value for value in values if value.startswith(f"{key}=")), None)
    if found is None:
        return default
    values.remove(found)
    return found.partition("=")[2]


def train_tokenizers(domain: str, data: Path, output: Path, more: Sequence[str]) -> list[str]:
    """Train both tokenizers and round them; return the settings that use them."""
    chosen = []
    for part, manifest in MANIFESTS[domain].items():
        rounded = output / "rounded" / part
        if not rounded.exists():
            places = ("--config", f"{domain}/baseline", "--data", data / manifest, "-o", output)
            segue("train", part, *places, *settings([*TOKENIZERS[domain], *more]))
            levels = [LEVELS] if part == "codec" else []
            run(SHIP, part, output / part, rounded, *levels)
        chosen.append(f"{part}.checkpoint={rounded.resolve()}")
    return chosen


def by_part(domain: str, values: Sequence[str]) -> dict[str, list[str]]:
    """Sort KEY=VALUE by tokenizer and stage; end this program at one that is for none."""
    stages = [f"stages.{name}" for name in ("semantic", "acoustic", *FLAT[domain])]
    found: dict[str, list[str]] = {part: [] for part in (*MANIFESTS[domain], *stages)}
    for value in values:
        part = next((part for part in found if value.startswith(f"{part}.")), None)
        if part is None or "=" not in value:
            sys.exit(f"{value}: is not KEY=VALUE of a part; begin with one of {', '.join(found)}")
        found[part].append(value)
    return found


def main(arguments: Sequence[str]) -> None:
    if len(arguments) < 3 or arguments[0] not in TOKENIZERS:
        sys.exit(__doc__)
    domain, source, output = arguments[0], arguments[1], Path(arguments[2])
    values = list(arguments[3:])
    fonts = taken(values, "render.fonts", FONT).split(",")
    more = by_part(domain, values)
    data, stages = output / "data", output / "stages"
    if domain == "piano":
        run(RENDER, source, data, "--copies", "2", "--fonts", *fonts)
    else:
        segue("prepare", domain, "--source", source, "-o", data)
    tokenizers = [value for part in MANIFESTS[domain] for value in more[part]]
    chosen = train_tokenizers(domain, data, output / "tokenizers", tokenizers)

    def train(config: str, directory: Path, values: Sequence[str]) -> Path:
        if directory != stages:
            link_to(stages / TOKENS, directory / TOKENS)
        places = ("--config", f"{domain}/{config}", "--data", data / "manifest.csv")
        segue("train", "all", *places, "-o", directory, *settings([*chosen, *values]))
        return directory / "pipeline"

    semantic, acoustic = more["stages.semantic"], more["stages.acoustic"]
    both = [*semantic, *acoustic]
    if domain == "piano":
        save(train("trained_tokenizers", stages, both), output / "pipeline")
        return
    first = train("textless_tokenizers", stages, both).resolve() / "stages"
    kept = [f"stages.semantic.lm.checkpoint={first / 'semantic'}", *semantic]
    start = f"stages.acoustic.lm.training.start_from={first / 'acoustic'}"
    taught = [*kept, start, *acoustic]
    save(train("trained_masked", output / "masked", taught), output / "textless")
    flat = [value for part in FLAT[domain] for value in more[f"stages.{part}"]]
    save(train("trained_three_stage", output / "flat", [*kept, *flat]), output / "three_stage")


def save(trained: Path, output: Path) -> None:
    print(Pipeline.from_pretrained(trained).save_pretrained(output, lm_dtype=torch.int8))


if __name__ == "__main__":
    main(sys.argv[1:])
