"""Given slices as seen from every target frame: embedded, resampled and mixed over time.

Shape legend: B batch, q levels of a slice, N target frames, D width.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from segue.core.errors import ConfigError
from segue.core.interfaces import Lengths, Tokens
from segue.core.spec import StageSpec
from segue.plugins.layers.config import GivenOptions
from segue.plugins.layers.heads import LevelEmbedding
from segue.plugins.layers.lengths import length_mask
from segue.plugins.layers.padding import take

Frames = Float[Tensor, "B N D"]


class ConvolutionBlock(nn.Module):
    """A residual depthwise convolution that looks both ways and never past a row's end."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, bias=False)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.out = nn.Linear(width, width)
        # Starts as the identity, so that the transformer first learns from the frame itself.
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Frames, mask: Bool[Tensor, "B N 1"]) -> Frames:
        mixed = self.depthwise((self.norm(x) * mask).transpose(1, 2)).transpose(1, 2)
        return x + self.out(functional.silu(mixed))


class GivenEncoder(nn.Module):
    """One vector per target frame from all given slices of a stage."""

    @classmethod
    def of(cls, stage: StageSpec, options: GivenOptions, width: int) -> GivenEncoder | None:
        """Return the encoder of a stage, or None if the stage has no given slices."""
        return cls(stage, options, width) if stage.given else None

    def __init__(self, stage: StageSpec, options: GivenOptions, width: int) -> None:
        super().__init__()
        self.rates = [stage.frames_per_target_frame(i) for i in range(len(stage.given))]
        for spec, rate in zip(stage.given, self.rates, strict=True):
            if rate.numerator != 1 and rate.denominator != 1:
                raise ConfigError(
                    f"stage {stage.name!r}",
                    f"{rate} frames of {spec} pass in one frame of {stage.target}",
                    "choose frame rates of which one is a whole multiple of the other",
                )
        self.sizes = [spec.codebook_size for spec in stage.given]
        # One extra row per table means "no token here".
        self.embeddings = nn.ModuleList(
            LevelEmbedding(spec.num_levels * rate.numerator, spec.codebook_size + 1, width)
            for spec, rate in zip(stage.given, self.rates, strict=True)
        )
        self.blocks = nn.ModuleList(
            ConvolutionBlock(width, options.given_kernel) for _ in range(options.given_blocks)
        )

    def forward(self, given: tuple[Tokens, ...], lengths: Lengths, count: int) -> Frames:
        """Return the context ``[B, count, D]`` of every target frame; zero from ``lengths`` on."""
        # Padding is masked before every convolution: a row sees the same alone and in a batch.
        mask = length_mask(lengths, count)[:, :, None]
        parts = []
        for tokens, rate, size, embedding in zip(
            given, self.rates, self.sizes, self.embeddings, strict=True
        ):
            parts.append(embedding(_resample(tokens, rate, count, size)).sum(dim=2))
        x = torch.stack(parts).sum(dim=0)
        for block in self.blocks:
            x = block(x, mask)
        return x * mask

    def at(
        self, given: tuple[Tokens, ...], lengths: Lengths, frame: Int64[Tensor, "B N"]
    ) -> Frames:
        """Return the context at ``frame``, as ``left_padded`` returns it, of ``lengths`` frames."""
        width = frame.shape[1]
        if frame.device.type != "cpu" or len(frame) == 1:
            return take(self(given, lengths, width), frame.clamp_min(0))
        # One by one, on a CPU at no cost: each row equals bit by bit what it is alone.
        rows = []
        for row, length in enumerate(lengths.tolist()):
            own = tuple(Tokens(t.ids[row : row + 1], t.lengths[row : row + 1]) for t in given)
            context = self(own, lengths[row : row + 1], length)
            rows.append(functional.pad(context, (0, 0, 0, width - length)))
        return take(torch.cat(rows), frame.clamp_min(0))


def _resample(tokens: Tokens, rate: Fraction, count: int, absent: int) -> Int64[Tensor, "B N q"]:
    """Return the ids that sound during each of ``count`` target frames.

    A slower slice repeats its frames. Of a faster one, all frames that pass during a target frame
    stand side by side, as further levels.
    """
    # Padding holds any ids: it must look like the absence of a token.
    ids = tokens.ids.masked_fill(~tokens.mask[:, None], absent)
    if rate.denominator > 1:
        ids = ids.repeat_interleave(rate.denominator, dim=2)
    # A slice may end early or late by part of a frame; every target frame needs its share.
    width = count * rate.numerator
    ids = functional.pad(ids[:, :, :width], (0, max(0, width - ids.shape[2])), value=absent)
    side_by_side = ids.reshape(*ids.shape[:2], count, rate.numerator).permute(0, 2, 1, 3)
    return side_by_side.flatten(2)
