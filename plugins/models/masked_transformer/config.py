"""Options of the masked transformer. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from segue.plugins.layers.config import GivenOptions, OddKernel, TransformerOptions


class MaskedTransformerOptions(TransformerOptions, GivenOptions):
    """Options of ``masked_transformer``.

    Attributes:
        blocks: ``conformer`` (Gulati et al., arXiv 2005.08100), as in SoundStorm, or plain
            ``transformer`` layers, which cost a fifth less.
        convolution_kernel: frames that the convolution of a conformer layer spans; odd.
        confidence_noise: Gumbel noise on the confidence that decides which drawn tokens stay, times
            the share of frames still masked (MaskGIT, Chang et al., arXiv 2202.04200, whose code
            uses 4.5 for images). 0 keeps the most likely tokens: safe, and less diverse. No noise
            is added at temperature 0.
        greedy_last_pass: take the most likely tokens in the last pass of a level, whatever the
            temperature (SoundStorm, arXiv 2305.09636, section 3.3). A level with one pass is then
            greedy.
        level_shares: how often each level is learnt, relative to the others; the last number
            applies to all further levels, and numbers beyond the stage's levels have no effect.
            One number: all levels equally often, as in SoundStorm. Levels of many passes are worth
            more.
        longest_prompt: largest share of a training row that is known at every level; the share is
            drawn uniformly. 1 as in SoundStorm; less learns from more frames.
    """

    of_training = TransformerOptions.of_training | {"level_shares", "longest_prompt"}

    blocks: Literal["conformer", "transformer"] = "conformer"
    convolution_kernel: OddKernel = 5
    confidence_noise: float = Field(default=1.0, ge=0.0, le=100.0)
    greedy_last_pass: bool = False
    level_shares: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(1.0,), min_length=1)
    longest_prompt: float = Field(default=1.0, gt=0.0, le=1.0)
