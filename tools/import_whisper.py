"""Take the lower layers of a Whisper encoder as a semantic tokenizer that is still to be fitted.

    python tools/import_whisper.py MODEL TARGET [KEY=VALUE ...]   (model.bin whisper/ depth=4)

MODEL is a model.bin of CTranslate2, as faster-whisper has it; KEY=VALUE are options of
whisper_kmeans.v1. `segue train semantic_tokenizer --set semantic_tokenizer.checkpoint=TARGET` fits
the clusters.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import yaml

from segue.core.checkpoint import save_component
from segue.core.files import atomic_directory
from segue.core.plugins import default_host
from segue.plugins.tokenizers.whisper_kmeans.model import encoder_state, read_variables

USE = "whisper_kmeans.v1"


def main(model: str, target: str, *settings: str) -> None:
    options = {key: yaml.safe_load(value) for key, _, value in (s.partition("=") for s in settings)}
    tokenizer = default_host().create("semantic_tokenizer", USE, options, place="tokenizer")
    state = encoder_state(read_variables(Path(model)), tokenizer.config.depth)
    tokenizer.encoder.load_state_dict({k: v.half().float() for k, v in state.items()})
    with atomic_directory(Path(target)) as temporary:
        save_component(tokenizer, temporary, "semantic_tokenizer", USE, {}, torch.float16, None)
    print(target)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
