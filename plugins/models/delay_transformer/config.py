"""Options of the delay transformer. Imports no torch."""

from __future__ import annotations

from pydantic import Field, field_validator

from segue.plugins.models.common.config import TransformerOptions


class DelayTransformerOptions(TransformerOptions):
    """Options of ``delay_transformer``.

    Attributes:
        given_kernel: frames that one convolution over the given slices spans; odd.
        given_blocks: number of such convolutions.
    """

    given_kernel: int = Field(default=9, ge=1)
    given_blocks: int = Field(default=2, ge=0)

    @field_validator("given_kernel")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(
                "given_kernel must be odd, so that a frame has as much before as after"
            )
        return value
