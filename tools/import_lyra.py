"""Take over the weights of Lyra V2 as a codec of Segue's own network.

    python tools/import_lyra.py MODELS TARGET [KEY=VALUE ...]   (model_coeffs/ lyra/ num_levels=8)

MODELS is a directory with soundstream_encoder.tflite, quantizer.tflite and lyragan.tflite of
github.com/google/lyra; KEY=VALUE are options of lyra.v2. Needs ai-edge-litert. Lyra computes some
of its layers in eight-bit integers; here all are computed as they were before that rounding.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from ai_edge_litert.interpreter import Interpreter
from torch import Tensor, nn

from segue.core.checkpoint import save_component
from segue.core.files import atomic_directory
from segue.core.plugins import default_host
from segue.plugins.tokenizers.lyra.model import LyraCodec

USE = "lyra.v2"
QUANTIZERS, ABSENT = 46, -1
#: Where each kind of layer keeps weight and bias among its inputs, and where PyTorch has the axes.
LAYERS = {
    "CONV_2D": (1, 2, (0, 2, 1)),
    "DEPTHWISE_CONV_2D": (1, 2, (2, 0, 1)),
    "TRANSPOSE_CONV": (1, 3, (2, 0, 1)),
}


def layers(file: Path) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield kind, weight and bias of each convolution, in the order in which they run."""
    model = Interpreter(str(file))
    model.allocate_tensors()
    details = {each["index"]: each for each in model.get_tensor_details()}

    def read(index: int) -> np.ndarray[Any, Any]:
        values = model.get_tensor(index)
        scales, zeros, axis = (
            details[index]["quantization_parameters"][key]
            for key in ("scales", "zero_points", "quantized_dimension")
        )
        if not scales.size:
            return values
        shape = [1] * values.ndim
        shape[axis] = scales.size
        return (values.astype(np.float32) - zeros.reshape(shape)) * scales.reshape(shape)

    for operation in model._get_ops_details():
        if (kind := operation["op_name"]) in LAYERS:
            weight, bias, axes = LAYERS[kind]
            # One of the two axes of a picture has a single place.
            turned = read(operation["inputs"][weight])[:, :, 0].transpose(axes)
            made = torch.from_numpy(np.ascontiguousarray(turned))
            yield kind, made, torch.from_numpy(read(operation["inputs"][bias]).copy()).flatten()


def fill(network: nn.Module, file: Path) -> None:
    """Give the convolutions of an encoder or decoder the weights of a file."""
    found = layers(file)
    for conv in network.modules():
        if not isinstance(conv, nn.Conv1d | nn.ConvTranspose1d):
            continue
        kind, weight, bias = next(found)
        if kind == "TRANSPOSE_CONV":  # one layer for each group of channels
            rest = [next(found) for _ in range(conv.groups - 1)]
            weight = torch.cat([weight, *(w for _, w, _ in rest)])
            bias = torch.cat([bias, *(b for *_, b in rest)])
        assert conv.bias is not None and conv.weight.shape == weight.shape, (file, weight.shape)
        conv.weight.data.copy_(weight.half())
        conv.bias.data.copy_(bias.half())
    assert next(found, None) is None, f"{file} has more layers"


def codebooks(file: Path) -> Tensor:
    """Return the sums of each two quantizers' codes, ``[Q, V, D]``."""
    model = Interpreter(str(file))
    dequantize = model.get_signature_runner("decode")

    def code(quantizer: int, index: int) -> np.ndarray[Any, Any]:
        indices = np.full((QUANTIZERS, 1, 1), ABSENT, np.int32)
        indices[quantizer] = index
        return dequantize(encoding_indices=indices)["output_0"].reshape(-1)

    codes = np.stack([[code(q, index) for index in range(16)] for q in range(QUANTIZERS)])
    pairs = torch.from_numpy(codes)
    return (pairs[0::2, :, None] + pairs[1::2, None]).flatten(1, 2)


def main(models: str, target: str, *settings: str) -> None:
    options = {key: yaml.safe_load(value) for key, _, value in (s.partition("=") for s in settings)}
    codec = default_host().create("codec", USE, options, place="codec")
    assert isinstance(codec, LyraCodec)
    fill(codec.encoder, Path(models) / "soundstream_encoder.tflite")
    fill(codec.decoder, Path(models) / "lyragan.tflite")
    for book, codes in zip(
        codec.quantizer.levels(), codebooks(Path(models) / "quantizer.tflite"), strict=False
    ):
        book.codes.copy_(codes.half())
        book.sums.copy_(book.codes)
        book.seeded.fill_(True)
    with atomic_directory(Path(target)) as temporary:
        save_component(codec, temporary, "codec", USE, {}, torch.float16, None)
    print(target)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
