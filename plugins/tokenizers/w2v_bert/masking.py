"""Spans that are hidden from the encoder, and what stands in their place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from segue.plugins.tokenizers.w2v_bert.config import W2vBertOptions
from segue.plugins.tokenizers.w2v_bert.encoder import Frames, Mask, Mel

NOISE = 0.3  # standard deviation; that of what is normalised is 1


@dataclass(frozen=True)
class Masked:
    """One batch as an objective sees it.

    Attributes:
        mel: whole spectra, from which targets are made.
        valid: frames that are no padding.
        hidden: frames that the encoder did not see.
        states: activations of all layers for what was left, the lowest layer's first.
    """

    mel: Mel
    valid: Mask
    hidden: Mask
    states: list[Frames]


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


def hide(mel: Mel, hidden: Mask, config: W2vBertOptions, random: torch.Generator | None) -> Mel:
    """Spectra with noise or zeros in the place of hidden frames."""
    there = hidden.repeat_interleave(config.subframes, dim=1)[..., None]
    if config.mask_fill == "zero":
        return mel * ~there
    noise = NOISE * torch.randn(mel.shape, generator=random).to(mel)
    return torch.where(there, noise, mel)
