"""Modules whose weights are rounded to eight bits: for decoding on a CPU.

A step reads every weight once, so a quarter of the bytes is most of a quarter of the time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

from segue.core.eight_bits import quantize

M = TypeVar("M", bound=nn.Module)


def contents(tensors: Iterable[Tensor]) -> tuple[object, ...]:
    """Tells whether weights are still those that something was made of.

    By their place and by two sums over each: counters of in-place changes miss those through
    ``.data`` and in inference mode. It reads every weight twice, as two decoding steps do.
    """
    return tuple(
        item
        for tensor in tensors
        for item in (
            tensor.data_ptr(),
            tensor.dtype,
            tuple(tensor.shape),
            float(tensor.detach().sum()),
            float(tensor.detach().float().norm()),
        )
    )


def rounded(module: M) -> M:
    """A copy whose linear layers hold what their eight-bit codes stand for."""
    module = copy.deepcopy(module)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.copy_(quantize(layer.weight).dense())
    return module
