"""Train a domain's shipped pipelines anew, by Segue's own commands.

    python tools/train_small.py DOMAIN SOURCE OUTPUT [KEY=VALUE ...]   (speech data/ runs/speech)

SOURCE is what `segue prepare DOMAIN` takes. KEY=VALUE overrides the config of the tokenizer or the
stage that it names: semantic, acoustic or one of the paper's cascade, such as coarse. Hours on a
CPU; the same command goes on where it was stopped. OUTPUT/pipeline is the pipeline, and beside it
lies the one after the paper's cascade, both with their stages in eight bits as in what ships.
OUTPUT/tokenizers/rounded holds the tokenizers, for piano also a second semantic one that no stage
is trained on, whose KEY begins with harmony_tokenizer. Of speech OUTPUT/textless is the pipeline;
tools/train_words.py then makes OUTPUT/pipeline.
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

#: What is asked of a domain's tokenizers beside its config.
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
    "piano": ["codec.options.num_levels=8", "codec.training.steps=4500"],
}
#: A second semantic tokenizer, which no stage is trained on: its name, and what is asked of it.
SECOND = {
    "piano": (
        "harmony_tokenizer",
        [
            "semantic_tokenizer.use=w2v_bert.v1",
            "semantic_tokenizer.options.objective=chroma",
            "semantic_tokenizer.options.bands=note",
            "semantic_tokenizer.options.normalise=row",
            "semantic_tokenizer.options.window=4096",
            "semantic_tokenizer.options.num_mels=84",
            "semantic_tokenizer.options.subframes=2",
            "semantic_tokenizer.options.depth=4",
            "semantic_tokenizer.options.layer=4",
            "semantic_tokenizer.options.warp=0",
            "semantic_tokenizer.options.transpose=5",
            "semantic_tokenizer.options.noise=0.3",
            "semantic_tokenizer.options.equalise=0.4",
            "semantic_tokenizer.options.mask_share=0.15",
            "semantic_tokenizer.options.mask_seconds=0.2",
            "semantic_tokenizer.options.num_clusters=512",
            "semantic_tokenizer.training.steps=1600",
            "semantic_tokenizer.training.batch_size=8",
            "semantic_tokenizer.training.crop_seconds=4",
            "semantic_tokenizer.training.learning_rate=1.0e-3",
            "semantic_tokenizer.training.warmup_steps=60",
            "semantic_tokenizer.training.ema=0.995",
        ],
    ),
}
#: Manifests that tokenizers are trained on: single words, too, for the semantic one of speech.
MANIFESTS = {
    "speech": {"semantic_tokenizer": "manifest-all.csv", "codec": "manifest.csv"},
    "piano": {"semantic_tokenizer": "manifest.csv", "codec": "manifest.csv"},
}
LEVELS = "8"  # of the codec that are kept
#: The pipeline after the paper's cascade, and its stages that are trained for it.
CASCADES = {"speech": ("three_stage", ("coarse", "fine")), "piano": ("two_stage", ("coarse",))}
#: The config that stages are trained from at first, and the folder of the pipeline made of it.
CONFIGS = {
    "speech": ("textless_tokenizers", "textless"),
    "piano": ("trained_tokenizers", "pipeline"),
}
SHIP = Path(__file__).with_name("ship_tokenizer.py")


def run(*command: str | Path) -> None:
    """Tell a command and run it by this Python; what it fails with ends this program, too."""
    print("$ python", *command, flush=True)
    if code := subprocess.run([sys.executable, *command], check=False).returncode:
        sys.exit(code)


def segue(*arguments: str | Path) -> None:
    run("-m", "segue", *arguments)


def settings(values: Sequence[str]) -> list[str]:
    return [text for value in values for text in ("--set", value)]


def train_tokenizers(domain: str, data: Path, output: Path, more: Sequence[str]) -> list[str]:
    """Both tokenizers, rounded as what ships; returns what makes a pipeline use them."""
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


def train_second(domain: str, data: Path, output: Path, more: Sequence[str]) -> None:
    """The second semantic tokenizer, rounded, beside the others."""
    part, (name, values) = "semantic_tokenizer", SECOND[domain]
    rounded = output / "rounded" / name
    if rounded.exists():
        return
    manifest, own = data / MANIFESTS[domain][part], [v.replace(name, part, 1) for v in more]
    places = ("--config", f"{domain}/baseline", "--data", manifest, "-o", output / name)
    segue("train", part, *places, *settings([*values, *own]))
    run(SHIP, part, output / name / part, rounded)


def by_part(domain: str, values: Sequence[str]) -> dict[str, list[str]]:
    """KEY=VALUE of each tokenizer and each stage; what is for none of them ends this program."""
    stages = [f"stages.{name}" for name in ("semantic", "acoustic", *CASCADES[domain][1])]
    tokenizers = [*MANIFESTS[domain], *([SECOND[domain][0]] if domain in SECOND else [])]
    found: dict[str, list[str]] = {part: [] for part in (*tokenizers, *stages)}
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
    more = by_part(domain, arguments[3:])
    data, stages = output / "data", output / "stages"
    segue("prepare", domain, "--source", source, "-o", data)
    tokenizers = [value for part in MANIFESTS[domain] for value in more[part]]
    chosen = train_tokenizers(domain, data, output / "tokenizers", tokenizers)
    if domain in SECOND:
        train_second(domain, data, output / "tokenizers", more[SECOND[domain][0]])

    def train(config: str, directory: Path, values: Sequence[str]) -> Path:
        if directory != stages:
            link_to(stages / TOKENS, directory / TOKENS)
        places = ("--config", f"{domain}/{config}", "--data", data / "manifest.csv")
        segue("train", "all", *places, "-o", directory, *settings([*chosen, *values]))
        return directory / "pipeline"

    semantic, acoustic = more["stages.semantic"], more["stages.acoustic"]
    config, made = CONFIGS[domain]
    first = train(config, stages, [*semantic, *acoustic]).resolve() / "stages"
    kept = [f"stages.semantic.lm.checkpoint={first / 'semantic'}", *semantic]
    start = f"stages.acoustic.lm.training.start_from={first / 'acoustic'}"
    taught = [*kept, start, *acoustic]
    save(train("trained_masked", output / "masked", taught), output / made)
    name, parts = CASCADES[domain]
    flat = [value for part in parts for value in more[f"stages.{part}"]]
    save(train(f"trained_{name}", output / "flat", [*kept, *flat]), output / name)


def save(trained: Path, output: Path) -> None:
    print(Pipeline.from_pretrained(trained).save_pretrained(output, lm_dtype=torch.int8))


if __name__ == "__main__":
    main(sys.argv[1:])
