"""Hash what decides the tokens of a tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from segue.core.options import FINGERPRINT_DIGITS, TokenizerOptions, options_digest


def token_digest(name: str, options: TokenizerOptions, tensors: Mapping[str, Tensor]) -> str:
    """Return the hash of a tokenizer's registered name, its options and its tensors."""
    digest = options_digest(name, options)
    add_tensors(digest, tensors)
    return digest.hexdigest()[:FINGERPRINT_DIGITS]


def add_tensors(digest: hashlib._Hash, tensors: Mapping[str, Tensor]) -> None:
    """Add names, types, shapes and values to a hash, independent of their order."""
    for key, tensor in sorted(tensors.items()):
        digest.update(f"{key}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(values.numpy().tobytes())


def file_digest(path: Path) -> str:
    """Return the hash of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:FINGERPRINT_DIGITS]
