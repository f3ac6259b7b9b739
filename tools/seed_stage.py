"""Begin a stage on tokens of several clusterings where another stage ended.

    python tools/seed_stage.py STAGE TOKENIZER TARGET [TIMES]      (stages/acoustic notes/ start/)

TARGET becomes a checkpoint for `training.start_from`: tensors of STAGE, and embeddings of what
TOKENIZER emits that lie as its clusters do, by a fixed random projection. Codes for similar sounds
then begin alike; from random embeddings, each code must be learnt on its own. With TIMES it gets so
many times as many blocks, of which the new ones change nothing at first.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from segue.core.checkpoint import load_component, load_tensors
from segue.core.checkpoint_files import WEIGHTS
from segue.core.files import atomic_directory
from segue.core.plugins import default_host

#: Tensors with one row per code: of given tokens, and of a semantic stage's own.
GIVEN, OWN, HEADS = (
    "given_encoder.embeddings.0.table.weight",
    "embedding.table.weight",
    "heads.weight",
)
BLOCKS = "transformer.blocks."
SPREAD = 0.02  # deviation of a stage's initial weights


def projected(tokenizer: torch.nn.Module, width: int) -> Tensor:
    """Return an embedding of each code of each level, ``[Q, V, D]``."""
    spec, random = tokenizer.spec, torch.Generator().manual_seed(0)
    levels = []
    for level in range(spec.num_levels):
        ids = torch.zeros(spec.codebook_size, spec.num_levels, 1, dtype=torch.long)
        ids[:, level, 0] = torch.arange(spec.codebook_size)
        points = tokenizer.vectors(ids)[:, 0]
        points = points - points.mean(0)  # the other levels' points are the same in all rows
        levels.append(points @ torch.randn(points.shape[1], width, generator=random))
    found = torch.stack(levels)
    return found / found.std() * SPREAD


def deepened(state: dict[str, Tensor], times: int) -> dict[str, Tensor]:
    """Put ``times - 1`` copies that add nothing to the residual stream behind each block."""
    found = {}
    for name, value in state.items():
        if not name.startswith(BLOCKS):
            found[name] = value
            continue
        number, rest = name.removeprefix(BLOCKS).split(".", 1)
        for copy in range(times):
            new = torch.zeros_like(value) if copy and rest.endswith("out.weight") else value.clone()
            found[f"{BLOCKS}{int(number) * times + copy}.{rest}"] = new
    return found


def main(stage: str, source: str, target: str, times: str = "1") -> None:
    tokenizer = load_component(Path(source), default_host(), "semantic_tokenizer")
    state = {name: value.float() for name, value in load_tensors(Path(stage)).items()}
    codes = projected(tokenizer, state["transformer.norm.weight"].shape[0])
    rows = torch.nn.functional.pad(codes, (0, 0, 0, 1)).flatten(0, 1)  # one more: no token here
    if GIVEN in state:
        scale = state[GIVEN].std() / rows.std()
        state[GIVEN] = rows * scale
    else:
        state |= {OWN: rows, HEADS: codes.transpose(1, 2).contiguous()}
    state = deepened(state, int(times))
    with atomic_directory(Path(target)) as temporary:
        shutil.copy(Path(stage) / "component.json", temporary)
        save_file(state, temporary / WEIGHTS)
    print(target)


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    main(*sys.argv[1:])
