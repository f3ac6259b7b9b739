"""Train codecs by reconstruction, and against discriminators.

``WaveDiscriminator`` and ``StftDiscriminator`` are SoundStream's (Zeghidour et al., arXiv
2107.03312, section III.D); ``DilatedStftDiscriminator`` is EnCodec's (Défossez et al., arXiv
2210.13438, section 3.4). Losses are hinge losses: a logit above 1 means certainly real, one below
-1 certainly decoded.

Shape legend: B batch, T samples, N frames, C channels, M spectra, F frequencies.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d, leaky_relu, pad
from torch.nn.utils.parametrizations import weight_norm

from segue.core.interfaces import AcousticCodec, Adversary, StageBatch, Wave, WaveBatch
from segue.plugins.tokenizers.common.options import AdversaryOptions, TrainedCodecOptions
from segue.plugins.tokenizers.common.quantizer import QuantizedFrames, ResidualQuantizer

SLOPE = 0.2  # of the leaky ReLU below zero
WAVE_LAYERS = 4  # each divides the rate by 4
DILATIONS = (1, 2, 4)  # over time


class Verdict(NamedTuple):
    """Hold a discriminator's logits ``[B, ...]`` of a batch, and its feature maps."""

    logits: Tensor
    features: list[Tensor]


class WaveDiscriminator(nn.Module):
    """Judge the wave by strided convolutions, after averaging over ``downsampling`` samples.

    MelGAN, arXiv 1910.06711.
    """

    def __init__(self, downsampling: int = 1, channels: int = 16) -> None:
        super().__init__()
        self.downsampling = downsampling
        layers, width = [nn.Conv1d(1, channels, 15, padding=7)], channels
        for _ in range(WAVE_LAYERS):
            # Four times the channels at a quarter of the rate, up to a limit.
            wider, groups = min(4 * width, 64 * channels), max(1, width // 4)
            layers.append(nn.Conv1d(width, wider, 41, stride=4, padding=20, groups=groups))
            width = wider
        layers.append(nn.Conv1d(width, width, 5, padding=2))
        self.layers = nn.ModuleList(weight_norm(layer) for layer in layers)
        self.judge = weight_norm(nn.Conv1d(width, 1, 3, padding=1))

    def forward(self, wave: Wave) -> Verdict:
        x, size = wave[:, None], self.downsampling
        if size > 1:
            x = avg_pool1d(x, 2 * size, size, padding=size, count_include_pad=False)
        return _verdict(x, self.layers, self.judge)


class StftDiscriminator(nn.Module):
    """Judge the complex spectrogram by residual units over time and frequency."""

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
        # Each unit halves the frequencies; the last convolution spans what is left of them.
        bins = -(-(window // 2) // 2 ** len(blocks))
        self.judge = weight_norm(nn.Conv2d(widths[-1], 1, (1, bins)))

    def forward(self, wave: Wave) -> Verdict:
        x = leaky_relu(self.enter(self.spectrum(wave)), SLOPE)
        features = [x]
        for block in self.blocks:
            x = block(x)
            features.append(x)
        return Verdict(self.judge(x)[:, 0, :, 0], features)


class DilatedStftDiscriminator(nn.Module):
    """Judge the complex spectrogram by dilated convolutions of constant width, which cost less."""

    def __init__(self, window: int = 1024, channels: int = 32) -> None:
        super().__init__()
        self.spectrum = Spectrum(window)
        layers = [nn.Conv2d(2, channels, (3, 9), padding=(1, 4))]
        for step in DILATIONS:  # while strides halve the frequencies
            padding, dilation = (step, 4), (step, 1)
            layers.append(nn.Conv2d(channels, channels, (3, 9), (1, 2), padding, dilation))
        layers.append(nn.Conv2d(channels, channels, 3, padding=1))
        self.layers = nn.ModuleList(weight_norm(layer) for layer in layers)
        self.judge = weight_norm(nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, wave: Wave) -> Verdict:
        return _verdict(self.spectrum(wave), self.layers, self.judge)


class Spectrum(nn.Module):
    """Compute the complex spectrogram as two channels; hops are a quarter of the window."""

    window: Tensor

    def __init__(self, window: int) -> None:
        super().__init__()
        # Unit energy, as in EnCodec: noise keeps its level for windows of any size.
        shape = torch.hann_window(window)
        self.register_buffer("window", shape / shape.square().sum().sqrt(), persistent=False)

    def forward(self, wave: Wave) -> Float[Tensor, "B 2 M F"]:
        size = len(self.window)
        spectrum = torch.stft(
            wave, size, size // 4, window=self.window, pad_mode="constant", return_complex=True
        )
        # Drop the highest bin, so that their number is a power of two.
        spectrum = spectrum[:, :-1].transpose(1, 2)
        return torch.stack([spectrum.real, spectrum.imag], dim=1)


class ResidualUnit2d(nn.Module):
    """Add two convolutions, the second strided over time and frequency, to a strided shortcut."""

    def __init__(self, inputs: int, outputs: int, strides: tuple[int, int]) -> None:
        super().__init__()
        kernel = (strides[0] + 2, strides[1] + 2)
        # Padding that gives as many places as the shortcut has, for odd sizes too.
        self.margin = (1, strides[1], 1, strides[0])
        self.first = weight_norm(nn.Conv2d(inputs, inputs, 3, padding=1))
        self.second = weight_norm(nn.Conv2d(inputs, outputs, kernel, strides))
        self.shortcut = weight_norm(nn.Conv2d(inputs, outputs, 1, strides))

    def forward(self, x: Float[Tensor, "B C M F"]) -> Float[Tensor, "B D M2 F2"]:
        h = self.second(pad(leaky_relu(self.first(x), SLOPE), self.margin))
        return leaky_relu(h + self.shortcut(x), SLOPE)


def _verdict(x: Tensor, layers: nn.ModuleList, judge: nn.Module) -> Verdict:
    features = []
    for layer in layers:
        x = leaky_relu(layer(x), SLOPE)
        features.append(x)
    return Verdict(judge(x)[:, 0], features)


def adversary_hinge(real: Sequence[Verdict], made: Sequence[Verdict]) -> Float[Tensor, ""]:
    """Return the discriminators' loss, the mean of ``max(0, 1 - D(x)) + max(0, 1 + D(x'))``.

    Take its gradient for the discriminators' parameters only.
    """
    losses = [
        (1.0 - of_real.logits).relu().mean() + (1.0 + of_made.logits).relu().mean()
        for of_real, of_made in zip(real, made, strict=True)
    ]
    return torch.stack(losses).mean()


def adversarial_hinge(made: Sequence[Verdict]) -> Float[Tensor, ""]:
    """Return the codec's loss, the mean over discriminators of ``max(0, 1 - D(x'))``."""
    return torch.stack([(1.0 - verdict.logits).relu().mean() for verdict in made]).mean()


def feature_matching(real: Sequence[Verdict], made: Sequence[Verdict]) -> Float[Tensor, ""]:
    """Return the mean L1 distance of feature maps, relative to the real maps' mean magnitudes.

    arXiv 2210.13438, equation 3. No gradient reaches the real maps.
    """
    distances = []
    for of_real, of_made in zip(real, made, strict=True):
        for wanted, found in zip(of_real.features, of_made.features, strict=True):
            scale = wanted.detach().abs().mean().clamp(min=1e-5)
            # Relative, or the maps with the largest numbers would decide alone.
            distances.append((found - wanted.detach()).abs().mean() / scale)
    return torch.stack(distances).mean()


SILENT = 1e-3  # amplitude; quieter crops are not amplified to full loudness
# Beyond these bounds a training teaches nothing more.
COLLAPSED_USE = 0.01  # of a codebook, between 0 and 1
COLLAPSED_HINGE = 0.02  # of an adversary; 2 is the loss of guessing
DIVERGED_HINGE = 20.0


@dataclass(frozen=True)
class Attempt:
    """Hold what a codec made of a batch."""

    wave: Wave  # recordings, zero beyond each row's length
    made: Wave  # decoded audio, zero there too
    quantized: QuantizedFrames
    mask: Float[Tensor, "B N"]  # 1 at valid frames
    loss: Tensor  # weighted reconstruction loss
    figures: Mapping[str, Tensor]  # for the log


class TrainedCodec(AcousticCodec):
    """Train by reconstruction, and against an adversary if the options ask for one.

    Both kinds of step move the codebooks as a side effect.
    """

    config: TrainedCodecOptions
    quantizer: ResidualQuantizer

    @abstractmethod
    def attempt(self, batch: WaveBatch) -> Attempt:
        """Encode, quantize and decode one batch of crops, with gradients."""

    def token_state(self) -> Mapping[str, Tensor]:
        """Return the encoder and the codes: neither decoder nor running means decide a token."""
        state = self.state_dict()
        return {k: v for k, v in state.items() if k.startswith("encoder.") or k.endswith(".codes")}

    def adversary(self) -> Adversary | None:
        options = self.config.adversary
        return None if options.none else CodecAdversary(options)

    def trouble(self, figures: Mapping[str, float]) -> str | None:
        return collapsed(figures)

    def adversarial_step(
        self, batch: WaveBatch | StageBatch, adversary: Adversary
    ) -> Mapping[str, Tensor]:
        return self.training_step(batch, adversary)

    def training_step(
        self, batch: WaveBatch | StageBatch, adversary: Adversary | None = None
    ) -> Mapping[str, Tensor]:
        assert isinstance(batch, WaveBatch)
        attempt, weights = self.attempt(batch), self.config.loss
        quantized = attempt.quantized
        loss = attempt.loss + weights.commitment * quantized.commitment
        judged: dict[str, Tensor] = {}
        if adversary is not None:
            judged = dict(adversary(attempt.wave, attempt.made))
            opposed = weights.adversarial * judged["adversarial"]
            opposed = opposed + weights.feature_matching * judged["feature_matching"]
            loss = loss + opposed
            # Log how much the discriminators weigh in the codec's loss.
            judged["adversarial_share"] = (opposed / loss).detach()
        figures = {name: value.detach() for name, value in attempt.figures.items()}
        figures["commitment"] = quantized.commitment.detach()
        use = self.quantizer.use(quantized.ids, attempt.mask)
        return {"loss": loss, **judged, **figures, **use}


class CodecAdversary(Adversary):
    """Judge recordings and decoded audio by several discriminators."""

    def __init__(self, options: AdversaryOptions) -> None:
        super().__init__()
        stft_kind = StftDiscriminator if options.stft_residual else DilatedStftDiscriminator
        members: list[nn.Module] = [
            WaveDiscriminator(scale, options.wave_channels) for scale in options.wave_scales
        ]
        members += [stft_kind(window, options.stft_channels) for window in options.stft_windows]
        self.discriminators = nn.ModuleList(members)
        self.stretch = options.stretch

    def forward(self, real: Wave, made: Wave) -> Mapping[str, Tensor]:
        if 0 < self.stretch < real.shape[1]:
            # One place for the whole batch and for both sides, which must be compared where they
            # lie.
            start = int(torch.randint(real.shape[1] - self.stretch + 1, ()))
            real, made = (wave[:, start : start + self.stretch] for wave in (real, made))
        # Bring all recordings to one loudness, or biases of the first layer drown soft ones.
        gain = 1.0 / (real.square().mean(1, keepdim=True).sqrt() + SILENT)
        both = torch.cat([real * gain, made * gain])  # one pass instead of two
        verdicts = [discriminator(both) for discriminator in self.discriminators]
        size = len(real)
        of_real = [Verdict(v.logits[:size], [f[:size] for f in v.features]) for v in verdicts]
        of_made = [Verdict(v.logits[size:], [f[size:] for f in v.features]) for v in verdicts]
        figures = {
            "adversary_loss": adversary_hinge(of_real, of_made),
            "adversarial": adversarial_hinge(of_made),
            "feature_matching": feature_matching(of_real, of_made),
        }
        for name, found in (("score_real", of_real), ("score_made", of_made)):
            scores = [verdict.logits.detach().mean() for verdict in found]
            figures[name] = torch.stack(scores).mean()
        return figures


def collapsed(figures: Mapping[str, float]) -> str | None:
    """Return why the training of a codec is failing, or None.

    Args:
        figures: running means: ``codebook_worst`` (how evenly the codes of the worst level are
            used) and, with an adversary, ``adversary_loss``.
    """
    use = figures.get("codebook_worst", 1.0)
    hinge = figures.get("adversary_loss", 1.0)
    if use < COLLAPSED_USE:
        return f"a codebook collapsed: its codes are used as if only {use:.1%} of them existed"
    if hinge < COLLAPSED_HINGE:
        return "the discriminators recognise every crop: the codec can learn nothing from them"
    if hinge > DIVERGED_HINGE:
        return "the discriminators diverged: their loss is ten times the loss of guessing"
    return None
