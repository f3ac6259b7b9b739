"""Spans that are hidden from the encoder, and what stands in their place."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from segue.plugins.tokenizers.w2v_bert.config import W2vBertOptions
from segue.plugins.tokenizers.w2v_bert.encoder import LOWEST_HERTZ, Mask, Mel

NOISE = 0.3  # standard deviation; a band's is 1


def draw_spans(valid: Mask, config: W2vBertOptions, random: torch.Generator | None) -> Mask:
    """Which frames are hidden: spans that may overlap, at least one in each row.

    Args:
        valid: which frames are no padding.
        config: share and length of the spans.
        random: None draws from the global state.
    """
    rows, count = valid.shape
    starts = 1 - (1 - config.mask_share) ** (1 / config.span)
    draw = torch.rand(rows, count, generator=random).to(valid.device)
    begin = (draw < starts) & valid
    # The frame with the lowest draw begins a span where none does.
    lowest = draw.masked_fill(~valid, 2.0).argmin(dim=1, keepdim=True)
    begin |= torch.zeros_like(begin).scatter(1, lowest, True) & ~begin.any(1, keepdim=True)
    reached = functional.max_pool1d(
        functional.pad(begin.float(), (config.span - 1, 0)), config.span, stride=1
    )
    return (reached > 0) & valid


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


def hide(mel: Mel, hidden: Mask, config: W2vBertOptions, random: torch.Generator | None) -> Mel:
    """Spectra with noise or zeros in the place of hidden frames."""
    there = hidden.repeat_interleave(config.subframes, dim=1)[..., None]
    if config.mask_fill == "zero":
        return mel * ~there
    noise = NOISE * torch.randn(mel.shape, generator=random).to(mel)
    return torch.where(there, noise, mel)
