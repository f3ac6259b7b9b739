"""Causal convolutions: what they emit depends on nothing that comes later.

Each layer sees zeros before the first sample of a stream. A stream that comes in chunks keeps the
last samples that each layer saw in a ``Past``, in place of those zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import elu, pad
from torch.nn.utils.parametrizations import weight_norm

Conv = nn.Conv1d | nn.ConvTranspose1d

FIRST_SHARE = 0.3  # of a residual unit's contribution, at the start of training


class Past:
    """What the layers of one stream saw last; empty before the first chunk."""

    def __init__(self) -> None:
        self._seen: dict[nn.Module, Tensor] = {}

    def extend(
        self, layer: nn.Module, x: Float[Tensor, "B C T"], context: int
    ) -> Float[Tensor, "B C S"]:
        """The chunk after the ``context`` samples before it, zeros if there were none."""
        before = self._seen.get(layer)
        extended = pad(x, (context, 0)) if before is None else torch.cat([before, x], dim=2)
        self._seen[layer] = extended[:, :, extended.shape[2] - context :]
        return extended


class CausalLayer(nn.Module):
    """A convolution that is given ``context`` samples before its input.

    Args:
        conv: the convolution, without padding.
        context: samples.
        activate: whether the input goes through an ELU first.
        normalise: whether the weight is parametrised by length and direction.
        share: of the energy's root that the output has at the start.
    """

    def __init__(
        self, conv: Conv, context: int, activate: bool, normalise: bool, share: float = 1.0
    ) -> None:
        super().__init__()
        # PyTorch's own start loses two thirds of the energy in each layer, after which biases drown
        # the signal and the quantizer finds but a few codes.
        fan_in = conv.in_channels * (context + 1 if conv.transposed else conv.kernel_size[0])
        nn.init.normal_(conv.weight, std=share / fan_in**0.5)
        assert conv.bias is not None
        nn.init.zeros_(conv.bias)
        self.conv = weight_norm(conv) if normalise else conv
        self.context, self.activate = context, activate

    def forward(
        self, x: Float[Tensor, "B C T"], past: Past | None = None
    ) -> Float[Tensor, "B D S"]:
        if self.activate:
            x = elu(x)
        x = pad(x, (self.context, 0)) if past is None else past.extend(self, x, self.context)
        return cast(Tensor, self.conv(x))


class CausalConv(CausalLayer):
    """``T / stride`` outputs of T inputs, of which there are a multiple of ``stride``."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        activate: bool = True,
        normalise: bool = False,
        share: float = 1.0,
    ) -> None:
        conv = nn.Conv1d(inputs, outputs, kernel, stride, dilation=dilation)
        context = (kernel - 1) * dilation + 1 - stride
        super().__init__(conv, context, activate, normalise, share)


class CausalUpsampling(CausalLayer):
    """``T * stride`` outputs of T inputs: each of this input and the one before."""

    def __init__(self, inputs: int, outputs: int, stride: int, normalise: bool = False) -> None:
        conv = nn.ConvTranspose1d(inputs, outputs, 2 * stride, stride)
        super().__init__(conv, 1, True, normalise)
        self.stride = stride

    def forward(
        self, x: Float[Tensor, "B C T"], past: Past | None = None
    ) -> Float[Tensor, "B D S"]:
        # Beginning and end lack one of the two inputs: the one was emitted with the input before,
        # the other will be with the next.
        return super().forward(x, past)[:, :, self.stride : -self.stride]


class ResidualUnit(nn.Module):
    """A dilated convolution and one per sample, added to the input."""

    def __init__(self, channels: int, kernel: int, dilation: int, normalise: bool) -> None:
        super().__init__()
        self.wide = CausalConv(channels, channels, kernel, dilation=dilation, normalise=normalise)
        self.narrow = CausalConv(channels, channels, 1, normalise=normalise, share=FIRST_SHARE)

    def forward(
        self, x: Float[Tensor, "B C T"], past: Past | None = None
    ) -> Float[Tensor, "B C T"]:
        return x + cast(Tensor, self.narrow(self.wide(x, past), past))


class CausalStack(nn.Module):
    """Layers one after another."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(
        self, x: Float[Tensor, "B C T"], past: Past | None = None
    ) -> Float[Tensor, "B D S"]:
        for layer in self.layers:
            x = layer(x, past)
        return x
