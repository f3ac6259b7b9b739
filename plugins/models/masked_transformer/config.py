"""Options of the masked transformer. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from segue.plugins.layers.config import GivenOptions, TransformerOptions


class MaskedTransformerOptions(TransformerOptions, GivenOptions):
    """Options of ``masked_transformer``.

    Attributes:
        blocks: ``conformer`` (Gulati et al., arXiv 2005.08100), as in SoundStorm, or plain
            ``transformer`` layers, which cost a fifth less.
        convolution_kernel: frames that the convolution of a conformer layer spans; odd.
        confidence_noise: Gumbel noise on the confidence that decides which drawn tokens stay, times
            the share of frames still masked (MaskGIT, Chang et al., arXiv 2202.04200, whose code
            takes 4.5 for images). 0 keeps the most likely ones: safe, and less diverse. There is
            none at temperature 0.
        greedy_last_pass: take the most likely tokens in the last pass of a level, whatever the
            temperature (SoundStorm, arXiv 2305.09636, section 3.3). A level of one pass is then
            greedy.
        level_shares: how often each level is learnt, in relation to the others; the last number is
            that of all further ones, and what is beyond the stage's levels has no effect. One
            number: all alike, as in SoundStorm. Levels of many passes are worth more.
        longest_prompt: share of a row that may be known at every level while it is learnt from;
            how much is is uniform. 1 as in SoundStorm; less learns from more frames.
    """

    of_training = TransformerOptions.of_training | {"level_shares", "longest_prompt"}

    blocks: Literal["conformer", "transformer"] = "conformer"
    convolution_kernel: int = Field(default=5, ge=1)
    confidence_noise: float = Field(default=1.0, ge=0.0, le=100.0)
    greedy_last_pass: bool = False
    level_shares: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(1.0,), min_length=1)
    longest_prompt: float = Field(default=1.0, gt=0.0, le=1.0)

    @field_validator("convolution_kernel")
    @classmethod
    def _looks_both_ways(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(
                "convolution_kernel must be odd, so that a frame has as much before as after"
            )
        return value
