"""Discriminators of waves, and the losses of a game against them.

``WaveDiscriminator`` and ``StftDiscriminator`` are those of SoundStream (Zeghidour et al., arXiv
2107.03312, section III.D); ``DilatedStftDiscriminator`` is that of EnCodec (Défossez et al., arXiv
2210.13438, section 3.4). They are hinge losses' critics: a logit above 1 is surely real, one below
-1 surely made.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d, leaky_relu, pad
from torch.nn.utils.parametrizations import weight_norm

SLOPE = 0.2  # of the leaky ReLU below zero


class Verdict(NamedTuple):
    """What one discriminator says of a batch: ``logits`` ``[B, ...]``, and its feature maps."""

    logits: Tensor
    features: list[Tensor]


class WaveDiscriminator(nn.Module):
    """A strided convolutional network on the wave, at one resolution (MelGAN, arXiv 1910.06711).

    Args:
        downsampling: the wave is averaged over so many samples first.
        channels: of the first layer; each strided layer has four times those before it, but at
            most 64 times ``channels``.
        strides: of the strided layers.
    """

    def __init__(
        self, downsampling: int = 1, channels: int = 16, strides: Sequence[int] = (4, 4, 4, 4)
    ) -> None:
        super().__init__()
        self.downsampling = downsampling
        layers, width = [nn.Conv1d(1, channels, 15, padding=7)], channels
        for stride in strides:
            wider = min(4 * width, 64 * channels)
            kernel, groups = 10 * stride + 1, max(1, width // 4)
            layers.append(nn.Conv1d(width, wider, kernel, stride, kernel // 2, groups=groups))
            width = wider
        layers.append(nn.Conv1d(width, width, 5, padding=2))
        self.layers = nn.ModuleList(weight_norm(layer) for layer in layers)
        self.judge = weight_norm(nn.Conv1d(width, 1, 3, padding=1))

    def forward(self, wave: Float[Tensor, "B T"]) -> Verdict:
        x, features = wave[:, None], []
        if self.downsampling > 1:
            size = self.downsampling
            x = avg_pool1d(x, 2 * size, size, padding=size, count_include_pad=False)
        for layer in self.layers:
            x = leaky_relu(layer(x), SLOPE)
            features.append(x)
        return Verdict(self.judge(x)[:, 0], features)


class StftDiscriminator(nn.Module):
    """A two-dimensional residual network on the complex spectrogram.

    Args:
        window: samples of the Hann window; hops are a quarter of it.
        channels: of the first layer; the last block has 16 times as many.
    """

    def __init__(self, window: int = 1024, channels: int = 32) -> None:
        super().__init__()
        self.spectrum = Spectrum(window)
        self.enter = weight_norm(nn.Conv2d(2, channels, 7, padding=3))
        widths = [channels * factor for factor in (1, 2, 4, 4, 8, 8, 16)]
        blocks = [
            ResidualUnit2d(width, wider, (1, 2) if index % 2 == 0 else (2, 2))
            for index, (width, wider) in enumerate(itertools.pairwise(widths))
        ]
        self.blocks = nn.ModuleList(blocks)
        bins = -(-(window // 2) // 2 ** len(blocks))
        self.judge = weight_norm(nn.Conv2d(widths[-1], 1, (1, bins)))

    def forward(self, wave: Float[Tensor, "B T"]) -> Verdict:
        x = leaky_relu(self.enter(self.spectrum(wave)), SLOPE)
        features = [x]
        for block in self.blocks:
            x = block(x)
            features.append(x)
        return Verdict(self.judge(x)[:, 0, :, 0], features)


class DilatedStftDiscriminator(nn.Module):
    """Dilated convolutions of constant width on the complex spectrogram: cheaper than residual.

    Args:
        window: samples of the Hann window; hops are a quarter of it.
        channels: of every layer.
        dilations: over time, of the layers that halve the frequencies.
    """

    def __init__(
        self, window: int = 1024, channels: int = 32, dilations: Sequence[int] = (1, 2, 4)
    ) -> None:
        super().__init__()
        self.spectrum = Spectrum(window)
        layers = [nn.Conv2d(2, channels, (3, 9), padding=(1, 4))]
        for step in dilations:
            padding, dilation = (step, 4), (step, 1)
            layers.append(nn.Conv2d(channels, channels, (3, 9), (1, 2), padding, dilation))
        layers.append(nn.Conv2d(channels, channels, 3, padding=1))
        self.layers = nn.ModuleList(weight_norm(layer) for layer in layers)
        self.judge = weight_norm(nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, wave: Float[Tensor, "B T"]) -> Verdict:
        x, features = self.spectrum(wave), []
        for layer in self.layers:
            x = leaky_relu(layer(x), SLOPE)
            features.append(x)
        return Verdict(self.judge(x)[:, 0], features)


class Discriminators(nn.ModuleList):
    """Several discriminators that judge the same waves.

    Args:
        members: modules from a wave ``[B, T]`` to a ``Verdict``.
    """

    def __init__(self, members: Iterable[nn.Module]) -> None:
        super().__init__(members)

    def forward(self, wave: Float[Tensor, "B T"]) -> list[Verdict]:
        return [member(wave) for member in self]


class Spectrum(nn.Module):
    """The complex spectrogram as two channels, of a scale near that of the wave.

    Args:
        window: samples of the Hann window; hops are a quarter of it.
    """

    window: Tensor

    def __init__(self, window: int) -> None:
        super().__init__()
        # Of unit energy, as in EnCodec: noise keeps its level whatever the window's size.
        shape = torch.hann_window(window)
        self.register_buffer("window", shape / shape.square().sum().sqrt(), persistent=False)

    def forward(self, wave: Float[Tensor, "B T"]) -> Float[Tensor, "B 2 M F"]:
        size = len(self.window)
        spectrum = torch.stft(
            wave, size, size // 4, window=self.window, pad_mode="constant", return_complex=True
        )
        # The highest bin is left out, so that the number of bins is a power of two.
        spectrum = spectrum[:, :-1].transpose(1, 2)
        return torch.stack([spectrum.real, spectrum.imag], dim=1)


class ResidualUnit2d(nn.Module):
    """Two convolutions, the second strided over time and frequency, beside a strided shortcut."""

    def __init__(self, inputs: int, outputs: int, strides: tuple[int, int]) -> None:
        super().__init__()
        kernel = (strides[0] + 2, strides[1] + 2)
        # As many places as the shortcut has, odd sizes included.
        self.margin = (1, strides[1], 1, strides[0])
        self.first = weight_norm(nn.Conv2d(inputs, inputs, 3, padding=1))
        self.second = weight_norm(nn.Conv2d(inputs, outputs, kernel, strides))
        self.shortcut = weight_norm(nn.Conv2d(inputs, outputs, 1, strides))

    def forward(self, x: Float[Tensor, "B C M F"]) -> Float[Tensor, "B D M2 F2"]:
        h = self.second(pad(leaky_relu(self.first(x), SLOPE), self.margin))
        return leaky_relu(h + self.shortcut(x), SLOPE)


def adversary_hinge(real: Sequence[Verdict], made: Sequence[Verdict]) -> Float[Tensor, ""]:
    """What discriminators minimise: the mean over them of ``max(0, 1 - D(x)) + max(0, 1 + D(x'))``.

    Its gradient is to be taken for the discriminators' parameters only.
    """
    losses = [
        (1.0 - there.logits).relu().mean() + (1.0 + here.logits).relu().mean()
        for there, here in zip(real, made, strict=True)
    ]
    return torch.stack(losses).mean()


def adversarial_hinge(made: Sequence[Verdict]) -> Float[Tensor, ""]:
    """What a codec minimises: the mean over discriminators of ``max(0, 1 - D(x'))``."""
    return torch.stack([(1.0 - verdict.logits).relu().mean() for verdict in made]).mean()


def feature_matching(real: Sequence[Verdict], made: Sequence[Verdict]) -> Float[Tensor, ""]:
    """Mean over all feature maps of their L1 distance, relative to the real map's mean absolute
    value (arXiv 2210.13438, equation 3); no gradient reaches the real maps."""
    distances = []
    for there, here in zip(real, made, strict=True):
        for wanted, found in zip(there.features, here.features, strict=True):
            scale = wanted.detach().abs().mean().clamp(min=1e-5)
            distances.append((found - wanted.detach()).abs().mean() / scale)
    return torch.stack(distances).mean()
