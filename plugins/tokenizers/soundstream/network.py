"""SoundStream's encoder and decoder (Zeghidour et al., arXiv 2107.03312, section III and figure 3).

All convolutions are causal and no layer normalises over time: an output depends on nothing that
comes later. Each layer sees zeros before the first sample of a stream. A stream that comes in
chunks keeps the last samples that each layer saw in a ``Past``, and uses them instead of zeros.

Shape legend: B batch, C channels, T samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import elu, pad
from torch.nn.utils.parametrizations import weight_norm

from segue.plugins.tokenizers.soundstream.config import SoundStreamOptions

Conv = nn.Conv1d | nn.ConvTranspose1d
Samples = Float[Tensor, "B C T"]

LAST_KERNEL = 3  # of the encoder
FIRST_SHARE = 0.3  # of a residual unit's contribution when training starts


class Past:
    """Keep what the layers of one stream saw last; empty before the first chunk."""

    def __init__(self) -> None:
        self._seen: dict[nn.Module, Tensor] = {}

    def extend(self, layer: nn.Module, x: Samples, context: int) -> Samples:
        """Return a layer's chunk after the ``context`` samples before it, zeros at the start."""
        before = self._seen.get(layer)
        extended = pad(x, (context, 0)) if before is None else torch.cat([before, x], dim=2)
        self._seen[layer] = extended[:, :, extended.shape[2] - context :]
        return extended


class CausalLayer(nn.Module):
    """Convolve the input and the ``context`` samples before it.

    Args:
        conv: the convolution, without padding.
        context: samples.
        activate: put the input through an ELU first.
        normalise: parametrise the weight by length and direction.
        share: of the input's amplitude that the output has at the start.
    """

    def __init__(
        self, conv: Conv, context: int, activate: bool, normalise: bool, share: float = 1.0
    ) -> None:
        super().__init__()
        # PyTorch's default loses two thirds of the energy in each layer; biases then drown the
        # signal and the quantizer finds only a few codes.
        fan_in = conv.in_channels * (context + 1 if conv.transposed else conv.kernel_size[0])
        nn.init.normal_(conv.weight, std=share / fan_in**0.5)
        assert conv.bias is not None
        nn.init.zeros_(conv.bias)
        self.conv = weight_norm(conv) if normalise else conv
        self.context, self.activate = context, activate

    def forward(self, x: Samples, past: Past | None = None) -> Samples:
        if self.activate:
            x = elu(x)
        x = pad(x, (self.context, 0)) if past is None else past.extend(self, x, self.context)
        return cast(Tensor, self.conv(x))


class CausalConv(CausalLayer):
    """Return ``T / stride`` outputs of T inputs, a multiple of ``stride``."""

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
    """Return ``T * stride`` outputs of T inputs, each made of its input and the one before."""

    def __init__(self, inputs: int, outputs: int, stride: int, normalise: bool = False) -> None:
        conv = nn.ConvTranspose1d(inputs, outputs, 2 * stride, stride)
        super().__init__(conv, 1, True, normalise)
        self.stride = stride

    def forward(self, x: Samples, past: Past | None = None) -> Samples:
        # The first and the last outputs lack one of their two inputs: the former were emitted with
        # the chunk before, the latter will be with the next.
        return super().forward(x, past)[:, :, self.stride : -self.stride]


class ResidualUnit(nn.Module):
    """Add a dilated convolution, followed by one per sample, to the input."""

    def __init__(self, channels: int, kernel: int, dilation: int, normalise: bool) -> None:
        super().__init__()
        self.wide = CausalConv(channels, channels, kernel, dilation=dilation, normalise=normalise)
        self.narrow = CausalConv(channels, channels, 1, normalise=normalise, share=FIRST_SHARE)

    def forward(self, x: Samples, past: Past | None = None) -> Samples:
        return x + cast(Tensor, self.narrow(self.wide(x, past), past))


class CausalStack(nn.Module):
    """Run layers one after another, all with the same past."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Samples, past: Past | None = None) -> Samples:
        for layer in self.layers:
            x = layer(x, past)
        return x


def make_encoder(options: SoundStreamOptions) -> CausalStack:
    """Build the network from ``[B, 1, N * hop]`` samples to ``[B, D, N]`` latent frames."""
    norm, width = options.weight_norm, options.channels
    layers: list[nn.Module] = [CausalConv(1, width, options.kernel, activate=False, normalise=norm)]
    for stride in options.strides:
        layers += _residual_units(options, width)
        layers.append(CausalConv(width, 2 * width, 2 * stride, stride, normalise=norm))
        width *= 2
    layers.append(CausalConv(width, options.latent_dim, LAST_KERNEL, normalise=norm))
    return CausalStack(layers)


def make_decoder(options: SoundStreamOptions) -> CausalStack:
    """Build the network from ``[B, D, N]`` latent frames to ``[B, 1, N * hop]`` samples."""
    norm, width = options.weight_norm, options.channels * 2 ** len(options.strides)
    layers: list[nn.Module] = [
        CausalConv(options.latent_dim, width, options.kernel, activate=False, normalise=norm)
    ]
    for stride in reversed(options.strides):
        layers.append(CausalUpsampling(width, width // 2, stride, normalise=norm))
        width //= 2
        layers += _residual_units(options, width)
    layers.append(CausalConv(width, 1, options.kernel, normalise=norm))
    return CausalStack(layers)


def _residual_units(options: SoundStreamOptions, width: int) -> list[nn.Module]:
    return [
        ResidualUnit(width, options.kernel, dilation, options.weight_norm)
        for dilation in options.dilations
    ]
