"""SoundStream's encoder and decoder (Zeghidour et al., arXiv 2107.03312, section III and figure 3).

No layer normalises over time: a sample depends on those before it only.
"""

from __future__ import annotations

from torch import nn

from segue.plugins.tokenizers.soundstream.config import SoundStreamOptions
from segue.plugins.tokenizers.soundstream.layers import (
    CausalConv,
    CausalStack,
    CausalUpsampling,
    ResidualUnit,
)

LAST_KERNEL = 3  # of the encoder


def encoder(options: SoundStreamOptions) -> CausalStack:
    """``[B, 1, N * hop]`` samples to ``[B, D, N]`` latent frames."""
    norm, width = options.weight_norm, options.channels
    layers: list[nn.Module] = [CausalConv(1, width, options.kernel, activate=False, normalise=norm)]
    for stride in options.strides:
        layers += _residual_units(options, width)
        layers.append(CausalConv(width, 2 * width, 2 * stride, stride, normalise=norm))
        width *= 2
    layers.append(CausalConv(width, options.latent_dim, LAST_KERNEL, normalise=norm))
    return CausalStack(layers)


def decoder(options: SoundStreamOptions) -> CausalStack:
    """``[B, D, N]`` latent frames to ``[B, 1, N * hop]`` samples."""
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
