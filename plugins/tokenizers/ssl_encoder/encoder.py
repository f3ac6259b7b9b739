"""Spectra, convolutions that reduce their rate, and conformer layers; in training, changes of the
input: hidden spans, another voice, another room.

Random numbers of changes are drawn on the CPU; a generator of None is the global state.

Shape legend: B batch, T samples, M spectra, F bands, N frames, D width, K bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torchaudio
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from segue.core.interfaces import Lengths, Wave
from segue.plugins.layers.config import TransformerOptions
from segue.plugins.layers.conformer import Conformer
from segue.plugins.layers.lengths import length_mask
from segue.plugins.tokenizers.common.spectra import Framing, note_filters
from segue.plugins.tokenizers.ssl_encoder.config import SslEncoderOptions

LOWEST_HERTZ = 20.0
FLOOR = 1e-5  # magnitude; a full-scale sine has about 0.5
LEAST_VARIANCE = 1.0  # in squared nats: a band without sound is not amplified to noise

Mel = Float[Tensor, "B M F"]
Frames = Float[Tensor, "B N D"]
Mask = Bool[Tensor, "B N"]


class LogMel(nn.Module):
    """Compute log spectra in bands, with zero mean and unit variance of each band or row."""

    filters: Tensor

    def __init__(self, config: SslEncoderOptions) -> None:
        super().__init__()
        self.hop, self.subframes = config.hop, config.subframes
        self.over = (1,) if config.normalise == "band" else (1, 2)
        self.framing = Framing(config.hop, config.window)
        if config.bands == "note":
            # One band per semitone, so that transposed chords look alike.
            notes = config.lowest_note + torch.arange(config.num_mels)
            filters = note_filters(notes, config.sample_rate, config.window).float()
        else:
            filters = torchaudio.functional.melscale_fbanks(
                config.window // 2 + 1, LOWEST_HERTZ, config.sample_rate / 2, config.num_mels,
                config.sample_rate, norm=None, mel_scale="htk",
            )  # fmt: skip
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, wave: Wave, lengths: Lengths) -> Mel:
        """Return ``[B, N * subframes, F]``, 0 beyond each row's end."""
        return self.normalised(self.raw(wave), lengths)

    def raw(self, wave: Wave) -> Mel:
        """Return ``[B, N * subframes, F]`` logarithms of magnitudes, at least ``FLOOR``."""
        spectra = self.framing.analyse(wave).abs() @ self.filters.to(wave.dtype)
        missing = -spectra.shape[1] % self.subframes
        return torch.log(functional.pad(spectra, (0, 0, 0, missing)) + FLOOR)

    def normalised(self, mel: Mel, lengths: Lengths) -> Mel:
        """Return raw spectra with zero mean and unit variance."""
        inside = length_mask(-(-lengths // self.hop), mel.shape[1])[..., None]
        count = inside.expand_as(mel).sum(self.over, keepdim=True).clamp(min=1)
        mel = (mel - (mel * inside).sum(self.over, keepdim=True) / count) * inside
        variance = mel.square().sum(self.over, keepdim=True) / count
        return mel / (variance + LEAST_VARIANCE).sqrt()


class Subsampling(nn.Module):
    """Reduce spectra to frames by two convolutions over time."""

    def __init__(self, config: SslEncoderOptions) -> None:
        super().__init__()
        width, last = config.width, config.subframes // 2
        self.first = nn.Conv1d(config.num_mels, width, 4, stride=2, padding=1)
        self.second = nn.Conv1d(width, width, 2 + last, stride=last, padding=1)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)
        self.last = last

    def forward(self, mel: Mel, valid: Mask) -> Frames:
        """Return frames, zero where ``valid`` is False."""
        x = functional.gelu(self.first(mel.transpose(1, 2)))
        # The first convolution leaves something in the padding that the second would read.
        x = x * valid.repeat_interleave(self.last, dim=1)[:, None]
        x = functional.gelu(self.second(x)[..., : valid.shape[1]])
        return self.out(self.norm(x.transpose(1, 2))) * valid[..., None]


class Encoder(nn.Module):
    """Run conformer layers (Gulati et al., arXiv 2005.08100) over subsampled spectra."""

    def __init__(self, config: SslEncoderOptions) -> None:
        super().__init__()
        self.subsampling = Subsampling(config)
        size = TransformerOptions(
            width=config.width, depth=config.depth, heads=config.heads,
            feed_forward=config.feed_forward, dropout=config.dropout,
        )  # fmt: skip
        self.conformer = Conformer(size, config.kernel)

    def forward(self, mel: Mel, valid: Mask, layers: int) -> list[Frames]:
        """Return the activations of the lowest layers, ``[B, N, D]`` each."""
        x = self.subsampling(mel, valid)
        places = torch.arange(x.shape[1], device=x.device, dtype=x.dtype).expand(x.shape[0], -1)
        sight = self.conformer.sight(places, valid)
        x = self.conformer.dropout(x)
        found = []
        for block in self.conformer.layers[:layers]:
            x = block(x, sight, None)
            # In the paper a norm ends each block; here it is outside the residual stream.
            found.append(functional.layer_norm(x, x.shape[-1:]))
        return found


MASK_NOISE = 0.3  # standard deviation; normalised spectra have 1
NOISE_BELOW = (3.5, 9.0)  # nats from a row's loudest band down to the noise
NOISE_TILT = 1.0  # standard deviation of its gain, in nats, from the middle band to the last
NOISE_JITTER = 0.25  # standard deviation of its logarithm
GAIN_KNOTS = 8  # gains are linear between them


@dataclass(frozen=True)
class Masked:
    """Hold one batch as an objective sees it."""

    mel: Mel  # whole spectra, from which targets are made
    valid: Mask  # False at padding
    hidden: Mask  # frames that the encoder did not see
    states: list[Frames]  # activations of all layers, the lowest layer's first


def masked_figures(
    batch: Masked,
    seen_weight: float,
    compare: Callable[[Mask], tuple[Tensor, Tensor]],
    used: Float[Tensor, ""],
) -> dict[str, Tensor]:
    """Return the loss and the figures of a masked prediction.

    Args:
        compare: returns mean loss and accuracy over chosen frames, 0 where none is chosen.
        used: perplexity of the targets.

    Returns:
        ``loss``; of hidden frames ``masked``, ``accuracy`` and ``perplexity``; of the others
        ``seen``, if it counts.
    """
    masked, accuracy = compare(batch.hidden)
    figures = {"loss": masked, "masked": masked}
    if seen_weight:
        seen, _ = compare(batch.valid & ~batch.hidden)
        figures |= {"loss": masked + seen_weight * seen, "seen": seen}
    return figures | {"accuracy": accuracy, "perplexity": used}


def draw_spans(valid: Mask, config: SslEncoderOptions, random: torch.Generator | None) -> Mask:
    """Return which frames to hide: spans that may overlap, at least one in each row."""
    rows, count = valid.shape
    # Probability of a start that leaves 1 - mask_share of the frames outside of all spans.
    starts = 1 - (1 - config.mask_share) ** (1 / config.span)
    draw = torch.rand(rows, count, generator=random).to(valid.device)
    begin = (draw < starts) & valid
    # A row without any span begins one at its lowest draw.
    lowest = draw.masked_fill(~valid, 2.0).argmin(dim=1, keepdim=True)
    begin |= torch.zeros_like(begin).scatter(1, lowest, True) & ~begin.any(1, keepdim=True)
    reached = functional.max_pool1d(
        functional.pad(begin.float(), (config.span - 1, 0)), config.span, stride=1
    )
    return (reached > 0) & valid


def hide(mel: Mel, hidden: Mask, config: SslEncoderOptions, random: torch.Generator | None) -> Mel:
    """Return spectra with noise or zeros in place of hidden frames."""
    covered = hidden.repeat_interleave(config.subframes, dim=1)[..., None]
    if config.mask_fill == "zero":
        return mel * ~covered
    noise = MASK_NOISE * torch.randn(mel.shape, generator=random).to(mel)
    return torch.where(covered, noise, mel)


def disturb(mel: Mel, config: SslEncoderOptions, random: torch.Generator | None) -> Mel:
    """Return log spectra as of another voice, another microphone and another room."""
    if config.warp:
        mel = warp(mel, config, random)
    if config.equalise:
        # Smooth gains over the bands that stay the same over a row.
        knots = config.equalise * torch.randn(mel.shape[0], 1, GAIN_KNOTS, generator=random)
        mel = mel + functional.interpolate(
            knots.to(mel), size=mel.shape[2], mode="linear", align_corners=True
        )
    return add_noise(mel, config.noise, random) if config.noise else mel


def warp(mel: Mel, config: SslEncoderOptions, random: torch.Generator | None) -> Mel:
    """Multiply each row's frequencies by a factor of its own."""
    spread = 2 * torch.rand(mel.shape[0], generator=random) - 1
    factors = ((1 + config.warp) ** spread).to(mel)
    if config.bands == "note":  # all semitones are equal steps
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


def warped_bands(
    factors: Float[Tensor, "B"], count: int, lowest: float, highest: float
) -> Float[Tensor, "B F"]:
    """Return where each mel band's sound is found when frequencies are multiplied by factors.

    Args:
        lowest: Hz, lower end of the bands.
        highest: Hz, upper end of the bands.

    Returns:
        Fractional band numbers.
    """
    ends = torch.log1p(torch.tensor([lowest, highest], dtype=factors.dtype) / 700.0)
    step = (ends[1] - ends[0]).item() / (count + 1)
    mels = ends[0].item() + step * torch.arange(1, count + 1).to(factors)
    hertz = 700.0 * torch.expm1(mels) * factors[:, None]
    return ((torch.log1p(hertz / 700.0) - ends[0].item()) / step - 1).clamp(0, count - 1)


def add_noise(mel: Mel, share: float, random: torch.Generator | None) -> Mel:
    """Add stationary noise, of a level and a tilt of its own, to a share of the rows."""
    rows, _, bands = mel.shape
    chosen = torch.rand(rows, 1, 1, generator=random) < share
    lowest, highest = NOISE_BELOW
    below = lowest + (highest - lowest) * torch.rand(rows, 1, 1, generator=random)
    tilt = NOISE_TILT * torch.randn(rows, 1, 1, generator=random) * torch.linspace(-1, 1, bands)
    jitter = NOISE_JITTER * torch.randn(mel.shape, generator=random)
    noise = mel.amax((1, 2), keepdim=True) + (tilt + jitter - below).to(mel)
    return torch.where(chosen.to(mel.device), torch.logaddexp(mel, noise), mel)


def transposed(mel: Mel, most: int, random: torch.Generator | None) -> Mel:
    """Move each row of bands of notes by up to ``most`` whole semitones; silence fills the gap."""
    steps = torch.randint(-most, most + 1, (mel.shape[0], 1), generator=random).to(mel.device)
    places = torch.arange(mel.shape[2], device=mel.device) - steps
    inside = (places >= 0) & (places < mel.shape[2])
    index = places.clamp(0, mel.shape[2] - 1)[:, None].expand(-1, mel.shape[1], -1)
    return torch.where(inside[:, None], mel.gather(2, index), math.log(FLOOR))
