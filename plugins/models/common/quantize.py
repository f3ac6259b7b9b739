"""Weights as eight-bit codes with one scale per group of 64: for decoding on a CPU.

A step reads every weight once, so a quarter of the bytes is most of a quarter of the time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

GROUP = 64

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Quantized:
    """A matrix ``[R, C]``: ``codes`` times the scale of their group of ``GROUP`` columns."""

    codes: Int8[Tensor, "R C"]
    scales: Float[Tensor, "R G"]

    def dense(self) -> Float[Tensor, "R C"]:
        """The matrix that the codes stand for."""
        columns = self.codes.shape[1]
        return self.codes * self.scales.repeat_interleave(GROUP, dim=1)[:, :columns]


def quantize(weight: Float[Tensor, "R C"]) -> Quantized:
    """The nearest codes, symmetric about 0; a group's largest weight has code 127."""
    weight = weight.detach().float()
    rows, columns = weight.shape
    padded = nn.functional.pad(weight, (0, -columns % GROUP)).view(rows, -1, GROUP)
    scales = padded.abs().amax(dim=-1) / 127
    codes = (padded / scales.clamp_min(1e-30)[..., None]).round().to(torch.int8)
    return Quantized(codes.view(rows, -1)[:, :columns].contiguous(), scales.contiguous())


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
