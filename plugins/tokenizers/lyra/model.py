"""Lyra V2 (github.com/google/lyra, Apache-2.0), a SoundStream small enough for a phone.

Zeghidour et al., arXiv 2107.03312, with convolutions in groups of 64 channels, residual units of
one filter per channel, and a first and last layer that span 64 samples and move by 16.
``tools/import_lyra.py`` takes over its released weights.

Lyra quantizes by 46 codebooks of 16 codes. Here a level joins two of them: its 256 codes are all
sums of a code of each, so that a stage predicts fewer, larger tokens.

Shape legend: B batch, T samples, N frames, D latent channels, C channels.
"""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.nn.functional import leaky_relu

from segue.plugins.tokenizers.lyra.config import LyraOptions
from segue.plugins.tokenizers.soundstream.model import (
    FIRST_SHARE,
    CausalConv,
    CausalStack,
    CausalUpsampling,
    Past,
    Samples,
    SoundStream,
)

GROUP = 64  # channels
ENDS = 4  # strides that the layers next to the wave span
ENTRY = 3  # frames that the layers next to the latents span

activate = partial(leaky_relu, negative_slope=0.3)


class LyraUnit(nn.Module):
    """Add three convolutions to the input: per channel and dilated, dense, and grouped."""

    def __init__(self, channels: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.layers = CausalStack(
            [
                CausalConv(
                    channels, channels, kernel, dilation=dilation, groups=channels,
                    activate=activate,
                ),
                CausalConv(channels, channels, 1, activate=None),
                CausalConv(
                    channels, channels, 1, groups=channels // GROUP, activate=activate,
                    share=FIRST_SHARE,
                ),
            ]
        )  # fmt: skip

    def forward(self, x: Samples, past: Past | None = None) -> Samples:
        return x + self.layers(x, past)


class LyraCodec(SoundStream):
    """Encode speech at 16 kHz to levels of 256 codes at 50 frames/s, without look-ahead."""

    config: LyraOptions

    def new_encoder(self) -> CausalStack:
        width: int = self.config.channels
        first, *others = self.config.strides
        layers: list[nn.Module] = [CausalConv(1, width, ENDS * first, first, activate=None)]
        for stride in others:
            layers += self.residual_units(width)
            layers.append(
                CausalConv(
                    width, 2 * width, 2 * stride, stride, groups=width // GROUP, activate=activate
                )
            )
            width *= 2
        groups = width // 2 // GROUP
        layers.append(
            CausalConv(width, self.config.latent_dim, ENTRY, groups=groups, activate=activate)
        )
        return CausalStack(layers)

    def new_decoder(self) -> CausalStack:
        first, *others = self.config.strides
        width = self.config.channels * 2 ** len(others)
        groups = width // 2 // GROUP
        layers: list[nn.Module] = [
            CausalConv(self.config.latent_dim, width, ENTRY, groups=groups, activate=None)
        ]
        for stride in reversed(others):
            width //= 2
            layers.append(
                CausalUpsampling(2 * width, width, stride, groups=width // GROUP, activate=activate)
            )
            layers += self.residual_units(width)
        layers.append(CausalUpsampling(width, 1, first, ENDS, activate=activate))
        return CausalStack(layers)

    def residual_units(self, channels: int) -> list[nn.Module]:
        return [
            LyraUnit(channels, self.config.kernel, dilation) for dilation in self.config.dilations
        ]
