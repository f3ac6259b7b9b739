"""Convolutional blocks on ragged rows of frames, channels last."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn


class FrameConv(nn.Module):
    """A convolution over time that sees zeros beyond both ends of a row.

    The input must be zero at padding; the output is not.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2, groups=groups)

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N D"]:
        return cast(Tensor, self.conv(x.transpose(1, 2))).transpose(1, 2)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution over time, then a two-layer network per frame, added to the input.

    ConvNeXt (Liu et al., arXiv 2201.03545) in one dimension, as in Vocos (Siuzdak,
    arXiv 2306.00814). Normalisation is per frame, so a row does not depend on its batch or its
    length.

    Args:
        width: channels D.
        hidden: channels of the hidden layer.
        kernel: frames the convolution spans.
        scale: initial size of the block's contribution.
    """

    def __init__(self, width: int, hidden: int, kernel: int, scale: float) -> None:
        super().__init__()
        self.mix = FrameConv(width, width, kernel, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(
        self, x: Float[Tensor, "B N D"], mask: Float[Tensor, "B N 1"]
    ) -> Float[Tensor, "B N D"]:
        h = self.expand(self.norm(self.mix(x)))
        change: Tensor = self.contract(nn.functional.gelu(h))
        return x + change * self.scale * mask


class FrameStack(nn.Module):
    """An input convolution, a stack of blocks and an output layer per frame.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        width: channels in between.
        hidden: channels of the blocks' hidden layers.
        depth: number of blocks.
        kernel: frames a block's convolution spans.
        first_kernel: frames the input convolution spans.
        upsampling: output frames per input frame; the blocks work at the output's rate.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int,
        hidden: int,
        depth: int,
        kernel: int,
        first_kernel: int,
        upsampling: int = 1,
    ) -> None:
        super().__init__()
        self.width, self.upsampling = width, upsampling
        self.first_reach, self.reach = first_kernel // 2, depth * (kernel // 2)
        self.enter = FrameConv(inputs, width * upsampling, first_kernel)
        self.enter_norm = nn.LayerNorm(width)
        blocks = (ConvNeXtBlock(width, hidden, kernel, 1.0 / depth) for _ in range(depth))
        self.blocks = nn.ModuleList(blocks)
        self.leave_norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, outputs)

    def forward(
        self, x: Float[Tensor, "B N C"], mask: Float[Tensor, "B M"]
    ) -> Float[Tensor, "B M O"]:
        """``x`` must be zero at padding; the output means nothing there.

        ``mask`` is 1 at valid output frames, of which there are ``M = N * upsampling``.
        """
        valid = mask[..., None]
        x = self.enter(x).reshape(x.shape[0], -1, self.width)
        x = self.enter_norm(x) * valid
        for block in self.blocks:
            x = block(x, valid)
        return cast(Tensor, self.leave(self.leave_norm(x)))
