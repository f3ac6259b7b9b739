"""Hold weights as eight-bit codes, one scale per group of 64: to store them, or decode on a CPU.

A file of such weights has two tensors for each matrix, ``<name>:codes`` and ``<name>:scales``; all
other tensors are stored as they are. A weight is its code times the scale of its group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float, Int8
from torch import Tensor, float16, int8
from torch.nn import functional

GROUP = 64
CODES, SCALES = ":codes", ":scales"  # modules and parameters have no colon in their names


@dataclass(frozen=True)
class EightBitMatrix:
    """A matrix ``[R, C]``: ``codes`` times the scale of their group of ``GROUP`` columns."""

    codes: Int8[Tensor, "R C"]
    scales: Float[Tensor, "R G"]

    def dense(self) -> Float[Tensor, "R C"]:
        """Return the matrix that the codes stand for."""
        rows, columns = self.codes.shape
        if columns % GROUP == 0:  # the same without a second matrix of scales
            return (self.codes.view(rows, -1, GROUP) * self.scales[..., None]).view(rows, columns)
        return self.codes * self.scales.repeat_interleave(GROUP, dim=1)[:, :columns]


def quantize(weight: Float[Tensor, "R C"]) -> EightBitMatrix:
    """Return the nearest codes, symmetric about 0; a group's largest weight has code 127."""
    weight = weight.detach().float()
    rows, columns = weight.shape
    padded = functional.pad(weight, (0, -columns % GROUP)).view(rows, -1, GROUP)
    # 127, not 128: codes are symmetric, so that a weight and its negative round alike.
    # One scale for 64 weights: one outlier coarsens its own group only.
    scales = padded.abs().amax(dim=-1) / 127
    codes = (padded / scales.clamp_min(1e-30)[..., None]).round().to(int8)
    # The kernel reads both from start to end, a row at a time.
    return EightBitMatrix(codes.view(rows, -1)[:, :columns].contiguous(), scales.contiguous())


def pack(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn floating-point tensors of two or more dimensions into codes, others into halves."""
    packed = {}
    for name, value in state.items():
        if not value.is_floating_point():
            packed[name] = value
        elif value.dim() < 2:
            packed[name] = value.to(float16)
        else:
            # Groups run along all dimensions but the first together.
            small = quantize(value.flatten(1))
            packed[name + CODES] = small.codes.view(value.shape)
            packed[name + SCALES] = small.scales
    return packed


def unpack(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn the codes that ``pack`` made back into numbers; other tensors stay the same.

    Raises:
        RuntimeError: if codes have no scales, or scales of another shape.
    """
    state = {k: v for k, v in stored.items() if not k.endswith((CODES, SCALES))}
    for key in (key for key in stored if key.endswith(CODES)):
        name, codes = key.removesuffix(CODES), stored[key]
        scales, flat = stored.get(name + SCALES), codes.flatten(1)
        if scales is None or scales.shape != (flat.shape[0], -(-flat.shape[1] // GROUP)):
            raise RuntimeError(f"{name}: codes without scales that fit them")
        state[name] = EightBitMatrix(flat, scales).dense().view(codes.shape)
    return state
