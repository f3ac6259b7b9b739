"""Take the lower layers of a Whisper encoder as a semantic tokenizer that is still to be fitted.

    python tools/import_whisper.py MODEL TARGET [KEY=VALUE ...]   (model.bin whisper/ depth=4)

MODEL is a model.bin of CTranslate2, as faster-whisper has it; KEY=VALUE are options of
whisper_kmeans.v1. `segue train semantic_tokenizer --set semantic_tokenizer.checkpoint=TARGET` fits
the clusters.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import yaml
from torch import Tensor

from segue.core.checkpoint import save_component
from segue.core.errors import CheckpointError
from segue.core.files import atomic_directory
from segue.core.plugins import default_host

USE = "whisper_kmeans.v1"


TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
#: Names of a block's tensors here and there.
BLOCK = {
    "attention_norm.weight": "self_attention/layer_norm/gamma",
    "attention_norm.bias": "self_attention/layer_norm/beta",
    "inner.weight": "self_attention/linear_0/weight",
    "inner.bias": "self_attention/linear_0/bias",
    "outer.weight": "self_attention/linear_1/weight",
    "outer.bias": "self_attention/linear_1/bias",
    "feed_norm.weight": "ffn/layer_norm/gamma",
    "feed_norm.bias": "ffn/layer_norm/beta",
    "feed.0.weight": "ffn/linear_0/weight",
    "feed.0.bias": "ffn/linear_0/bias",
    "feed.2.weight": "ffn/linear_1/weight",
    "feed.2.bias": "ffn/linear_1/bias",
}


def main(model: str, target: str, *settings: str) -> None:
    options = {key: yaml.safe_load(value) for key, _, value in (s.partition("=") for s in settings)}
    tokenizer = default_host().create("semantic_tokenizer", USE, options, place="tokenizer")
    state = encoder_state(read_variables(Path(model)), tokenizer.config.depth)
    tokenizer.encoder.load_state_dict({k: v.half().float() for k, v in state.items()})
    with atomic_directory(Path(target)) as temporary:
        save_component(tokenizer, temporary, "semantic_tokenizer", USE, {}, torch.float16, None)
    print(target)


def read_variables(path: Path) -> dict[str, Tensor]:
    """Return all variables of a ``model.bin`` by name, in single precision where they are numbers.

    The file (https://github.com/OpenNMT/CTranslate2, python/ctranslate2/specs/model_spec.py) holds
    version, name and revision; then each variable's name, shape, type and bytes; then aliases.
    Numbers are little-endian, strings end with a zero byte.

    Raises:
        CheckpointError: if the file is no whole model of a type that is known here.
    """
    try:
        with path.open("rb") as file:
            _number(file, "I")  # version of the format
            _string(file), _number(file, "I")  # the model's name and revision
            return dict(_variable(file) for _ in range(_number(file, "I")))
    except (struct.error, UnicodeDecodeError, KeyError, ValueError, OSError) as error:
        raise CheckpointError(
            str(path), f"it cannot be read ({error})", "give the model.bin of CTranslate2"
        ) from error


def encoder_state(variables: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Return the state dict of an ``Encoder`` of so many blocks."""
    state = {
        f"{part}.{kind}": variables[f"encoder/{part}/{kind}"]
        for part in ("conv1", "conv2")
        for kind in ("weight", "bias")
    }
    for number in range(depth):
        for ours, theirs in BLOCK.items():
            state[f"blocks.{number}.{ours}"] = variables[f"encoder/layer_{number}/{theirs}"]
    return state


def _variable(file: BinaryIO) -> tuple[str, Tensor]:
    name = _string(file)
    shape = [_number(file, "I") for _ in range(_number(file, "B"))]
    kind = TYPES[_number(file, "B")]
    count = _number(file, "I")
    values = np.frombuffer(file.read(count), kind).reshape(shape).copy()
    found = torch.from_numpy(values)
    return name, found.float() if found.is_floating_point() else found


def _string(file: BinaryIO) -> str:
    return file.read(_number(file, "H")).rstrip(b"\0").decode()


def _number(file: BinaryIO, kind: str) -> int:
    return int(struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))[0])


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
