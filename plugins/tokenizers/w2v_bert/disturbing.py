"""Disturbances of what the encoder hears in training: another voice, another room.

Shape legend: B batch, M spectra, F bands.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from segue.plugins.tokenizers.w2v_bert.config import W2vBertOptions
from segue.plugins.tokenizers.w2v_bert.encoder import FLOOR, LOWEST_HERTZ, Mel

NOISE_BELOW = (3.5, 9.0)  # nats that noise lies below the loudest band of a row
NOISE_TILT = 1.0  # standard deviation of what it gains, in nats, from the middle band to the last
NOISE_JITTER = 0.25  # standard deviation of its logarithm
GAIN_KNOTS = 8  # between which gains run straight


def disturb(mel: Mel, config: W2vBertOptions, random: torch.Generator | None) -> Mel:
    """Logarithms of magnitudes, as if each row had been said by another voice over another
    microphone in another room."""
    if config.warp:
        mel = warp(mel, config, random)
    if config.equalise:
        mel = mel + gains(mel, config.equalise, random)
    return in_noise(mel, config.noise, random) if config.noise else mel


def transposed(mel: Mel, most: int, random: torch.Generator | None) -> Mel:
    """Bands of notes, each row moved up or down by whole semitones of its own, ``most`` at most;
    where nothing comes from there is silence."""
    steps = torch.randint(-most, most + 1, (mel.shape[0], 1), generator=random).to(mel.device)
    places = torch.arange(mel.shape[2], device=mel.device) - steps
    there = (places >= 0) & (places < mel.shape[2])
    index = places.clamp(0, mel.shape[2] - 1)[:, None].expand(-1, mel.shape[1], -1)
    return torch.where(there[:, None], mel.gather(2, index), math.log(FLOOR))


def gains(mel: Mel, deviation: float, random: torch.Generator | None) -> Float[Tensor, "B 1 F"]:
    """Smooth gains over the bands, in nats, that stay the same over a row."""
    knots = deviation * torch.randn(mel.shape[0], 1, GAIN_KNOTS, generator=random)
    return functional.interpolate(
        knots.to(mel), size=mel.shape[2], mode="linear", align_corners=True
    )


def in_noise(mel: Mel, share: float, random: torch.Generator | None) -> Mel:
    """A share of the rows in stationary noise of a level and a tilt of their own."""
    rows, _, bands = mel.shape
    chosen = torch.rand(rows, 1, 1, generator=random) < share
    lowest, highest = NOISE_BELOW
    below = lowest + (highest - lowest) * torch.rand(rows, 1, 1, generator=random)
    tilt = NOISE_TILT * torch.randn(rows, 1, 1, generator=random) * torch.linspace(-1, 1, bands)
    jitter = NOISE_JITTER * torch.randn(mel.shape, generator=random)
    noise = mel.amax((1, 2), keepdim=True) + (tilt + jitter - below).to(mel)
    return torch.where(chosen.to(mel.device), torch.logaddexp(mel, noise), mel)


def warped_bands(
    factors: Float[Tensor, "B"], count: int, lowest: float, highest: float
) -> Float[Tensor, "B F"]:
    """Where, in bands, the sound of each mel band is when frequencies are multiplied by factors."""
    ends = torch.log1p(torch.tensor([lowest, highest], dtype=factors.dtype) / 700.0)
    step = (ends[1] - ends[0]).item() / (count + 1)
    mels = ends[0].item() + step * torch.arange(1, count + 1).to(factors)
    hertz = 700.0 * torch.expm1(mels) * factors[:, None]
    return ((torch.log1p(hertz / 700.0) - ends[0].item()) / step - 1).clamp(0, count - 1)


def warp(mel: Mel, config: W2vBertOptions, random: torch.Generator | None) -> Mel:
    """Each row's frequencies, multiplied by a factor of its own."""
    spread = 2 * torch.rand(mel.shape[0], generator=random) - 1
    factors = ((1 + config.warp) ** spread).to(mel)
    if config.bands == "note":  # a semitone is a step wherever it is
        steps = 12 * torch.log2(factors)[:, None]
        places = (torch.arange(config.num_mels).to(mel) + steps).clamp(0, config.num_mels - 1)
    else:
        places = warped_bands(factors, config.num_mels, LOWEST_HERTZ, config.sample_rate / 2)
    below = places.floor().long().clamp(max=config.num_mels - 2)
    share = (places - below)[:, None]
    low, high = (
        mel.gather(2, index[:, None].expand(-1, mel.shape[1], -1)) for index in (below, below + 1)
    )
    return low + share * (high - low)
