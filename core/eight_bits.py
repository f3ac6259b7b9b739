"""Weights as eight-bit codes with one scale per group of 64: to store them, to decode on a CPU.

A file of them has two tensors in place of each matrix, ``<name>:codes`` and ``<name>:scales``; any
tensor whose name ends otherwise stands for itself. A weight is its code times its group's scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float, Int8
from torch import Tensor, float16, int8
from torch.nn import functional

GROUP = 64
CODES, SCALES = ":codes", ":scales"  # no name of a module or parameter has a colon


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
    padded = functional.pad(weight, (0, -columns % GROUP)).view(rows, -1, GROUP)
    scales = padded.abs().amax(dim=-1) / 127
    codes = (padded / scales.clamp_min(1e-30)[..., None]).round().to(int8)
    return Quantized(codes.view(rows, -1)[:, :columns].contiguous(), scales.contiguous())


def pack(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floating-point tensors of two or more dimensions as codes and scales, others as halves.

    Groups run along all dimensions but the first together.
    """
    packed = {}
    for name, value in state.items():
        if not value.is_floating_point():
            packed[name] = value
        elif value.dim() < 2:
            packed[name] = value.to(float16)
        else:
            small = quantize(value.flatten(1))
            packed[name + CODES] = small.codes.view(value.shape)
            packed[name + SCALES] = small.scales
    return packed


def unpack(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict from what ``pack`` made, or the same tensors if it made nothing of them.

    Raises:
        RuntimeError: if codes have no scales, or scales of another shape.
    """
    state = {k: v for k, v in stored.items() if not k.endswith((CODES, SCALES))}
    for key in (key for key in stored if key.endswith(CODES)):
        name, codes = key.removesuffix(CODES), stored[key]
        scales = stored.get(name + SCALES)
        flat = codes.flatten(1)
        if scales is None or scales.shape != (flat.shape[0], -(-flat.shape[1] // GROUP)):
            raise RuntimeError(f"{name}: codes without scales that fit them")
        state[name] = Quantized(flat, scales).dense().view(codes.shape)
    return state
