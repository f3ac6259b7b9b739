"""Networks of the spectral codec: convolutions over frames, and spectra at both ends.

Shape legend: B batch, N frames, D channels, F frequencies.
"""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

Frames = Float[Tensor, "B N D"]

# Exponent that brings loud and soft partials closer together, as is usual in speech enhancement
# (e.g. Braun & Tashev, arXiv 2009.12286).
COMPRESSION = 0.3
FLOOR = 1e-5
# exp(1) is more than a full-scale wave can reach; it bounds an untrained decoder.
MAX_LOG_MAGNITUDE = 1.0


def features(spectra: Complex[Tensor, "B N F"]) -> Float[Tensor, "B N 3F"]:
    """Return the encoder's input: log magnitude and the two parts of the compressed spectrum."""
    magnitude = spectra.abs()
    compressed = spectra * (magnitude + FLOOR).pow(COMPRESSION - 1.0)
    log_magnitude = torch.log(magnitude + FLOOR) / 4.0 + 2.0  # roughly unit variance on speech
    return torch.cat([log_magnitude, compressed.real * 4.0, compressed.imag * 4.0], dim=2)


def polar(head: Float[Tensor, "B N 2F"]) -> Complex[Tensor, "B N F"]:
    """Make a spectrum of the decoder's log magnitudes and phases."""
    log_magnitude, phase = head.chunk(2, dim=2)
    magnitude = torch.exp(log_magnitude.clamp(max=MAX_LOG_MAGNITUDE))
    return torch.complex(magnitude * torch.cos(phase), magnitude * torch.sin(phase))


def scaled(head: Float[Tensor, "B N 3F"]) -> Complex[Tensor, "B N F"]:
    """Make a spectrum of the decoder's log magnitudes and the two parts that they scale.

    The parts are linear in the decoder's last layer, as the wave is in its spectrum: a phase that
    the codes carry needs no unwrapping.
    """
    log_magnitude, real, imaginary = head.chunk(3, dim=2)
    magnitude = torch.exp(log_magnitude.clamp(max=MAX_LOG_MAGNITUDE))
    return torch.complex(magnitude * real, magnitude * imaginary)


#: Numbers that the decoder emits per frequency, and the function that makes a spectrum of them.
HEADS = {"complex": (3, scaled), "polar": (2, polar)}


class FrameConv(nn.Module):
    """Convolve over time, channels last, with zeros beyond both ends.

    The input must be zero at padding; the output is not.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2, groups=groups)

    def forward(self, x: Frames) -> Frames:
        return cast(Tensor, self.conv(x.transpose(1, 2))).transpose(1, 2)


class ConvNeXtBlock(nn.Module):
    """Add a depthwise convolution over time and a two-layer network per frame to the input.

    ConvNeXt (Liu et al., arXiv 2201.03545) in one dimension, as in Vocos (Siuzdak,
    arXiv 2306.00814). Normalisation is per frame, so that a row does not depend on its batch.

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

    def forward(self, x: Frames, mask: Float[Tensor, "B N 1"]) -> Frames:
        h = self.expand(self.norm(self.mix(x)))
        change: Tensor = self.contract(nn.functional.gelu(h))
        return x + change * self.scale * mask


class FrameStack(nn.Module):
    """Stack an input convolution, blocks and an output layer per frame.

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
        self.width = width
        self.first_reach, self.reach = first_kernel // 2, depth * (kernel // 2)
        self.enter = FrameConv(inputs, width * upsampling, first_kernel)
        self.enter_norm = nn.LayerNorm(width)
        blocks = (ConvNeXtBlock(width, hidden, kernel, 1.0 / depth) for _ in range(depth))
        self.blocks = nn.ModuleList(blocks)
        self.leave_norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, outputs)

    def forward(self, x: Frames, mask: Float[Tensor, "B M"]) -> Frames:
        """Return output frames, which have no meaning at padding.

        Args:
            x: input frames, zero at padding.
            mask: 1 at valid output frames, of which there are ``M = N * upsampling``.
        """
        valid = mask[..., None]
        x = self.enter(x).reshape(x.shape[0], -1, self.width)
        x = self.enter_norm(x) * valid
        for block in self.blocks:
            x = block(x, valid)
        return cast(Tensor, self.leave(self.leave_norm(x)))
