"""Put a trained stage into a pipeline that ships, its matrices in eight bits.

    python tools/ship_stage.py CHECKPOINT PIPELINE STAGE [--tokens TOKENIZER --data MANIFEST]
    (runs/speech/stages/acoustic speech acoustic --tokens tokenizer/ --data manifest.csv)

CHECKPOINT is a folder of weights, or one of checkpoints of which the newest is taken. PIPELINE is
the name of a shipped pipeline; the folder that it names for STAGE is replaced, and its YAML gets
the stage's model, options and steps. A stage that was trained on the semantic tokens of another
tokenizer than the pipeline's, such as the one before its rounding, needs that one as --tokens: it
is accepted if both make nearly the same tokens of held-out recordings of --data.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from round_tokenizer import equal, waves

from segue.core.assembly import assemble
from segue.core.checkpoint import load_component, save_component
from segue.core.checkpoint_files import WEIGHTS, holding_weights, read_manifest
from segue.core.config_files import find_config, load_config
from segue.core.errors import SegueError
from segue.core.files import atomic_directory, write_text
from segue.core.interfaces import SemanticTokenizer, StageLM
from segue.core.plugins import default_host
from segue.core.spec import SEMANTIC, SliceSpec, StageSpec

LEAST_EQUAL = 0.985  # share of tokens that two tokenizers make alike; the others are near ties


def main(arguments: argparse.Namespace) -> None:
    host, checkpoint = default_host(), holding_weights(arguments.checkpoint)
    stage = load_component(checkpoint, host, f"stages.{arguments.stage}")
    if not isinstance(stage, StageLM) or stage.stage.name != arguments.stage:
        sys.exit(f"{checkpoint} is not a stage called {arguments.stage}")
    path = find_config(arguments.pipeline, host)
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    entry = next(each for each in tree["stages"] if each["name"] == arguments.stage)
    config = load_config(path, host).config
    shipped = Path(str(config.semantic_tokenizer.checkpoint))  # type: ignore[union-attr]
    stage.stage = on_tokens(stage.stage, shipped, arguments)
    manifest = read_manifest(checkpoint)
    target = path.parent / entry["lm"]["checkpoint"]
    with atomic_directory(target) as temporary:
        save_component(stage, temporary, manifest.kind, manifest.use, manifest.trained, torch.int8)
    entry["lm"] |= {"use": manifest.use, "options": manifest.options}
    entry["lm"]["training"]["steps"] = manifest.trained["steps"]
    write_text(path, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    try:
        assemble(load_config(path, host).config, host)
    except SegueError as error:  # another stage is still to come
        print(f"the pipeline does not fit yet: {error}")
    print(f"{target}: {(target / WEIGHTS).stat().st_size / 1e6:.1f} MB from {checkpoint}")


def on_tokens(stage: StageSpec, shipped: Path, arguments: argparse.Namespace) -> StageSpec:
    """Return the stage with the fingerprint of the pipeline's semantic tokens."""
    spec = read_manifest(shipped).token_spec
    assert spec is not None
    slices = (stage.target, *stage.given)
    others = {s.fingerprint for s in slices if s.stream == SEMANTIC} - {spec.fingerprint}
    if not others:
        return stage
    if arguments.tokens is None or arguments.data is None:
        sys.exit(f"trained on tokens {others}, not {spec.fingerprint}: give --tokens and --data")
    host, theirs = default_host(), read_manifest(arguments.tokens).token_spec
    if theirs is None or others != {theirs.fingerprint}:
        sys.exit(f"{arguments.tokens} does not make the tokens {others}")
    pair = [load_component(each, host, "tokenizer") for each in (arguments.tokens, shipped)]
    one, other = pair
    assert isinstance(one, SemanticTokenizer) and isinstance(other, SemanticTokenizer)
    share = equal(one, other, waves(str(arguments.data), "valid", other))
    print(f"{share:.2%} of the tokens of held-out recordings are equal")
    if share < LEAST_EQUAL:
        sys.exit(f"at least {LEAST_EQUAL:.1%} must be: train the stage on the pipeline's tokens")

    def named(part: SliceSpec) -> SliceSpec:
        return replace(part, fingerprint=spec.fingerprint) if part.stream == SEMANTIC else part

    return replace(stage, target=named(stage.target), given=tuple(map(named, stage.given)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("pipeline")
    parser.add_argument("stage")
    parser.add_argument("--tokens", type=Path, help="folder of the tokenizer it was trained on")
    parser.add_argument("--data", type=Path, help="manifest with held-out recordings")
    main(parser.parse_args())
