"""Options that every transformer stage shares. Imports no torch."""

from __future__ import annotations

from pydantic import Field, model_validator

from segue.core.options import Options


class TransformerOptions(Options):
    """Size of a pre-norm decoder-only transformer.

    Attributes:
        width: D, channels of the residual stream.
        depth: number of layers.
        heads: attention heads; ``width / heads`` must be even (rotary positions turn pairs).
        feed_forward: hidden width of the SwiGLU; None takes 8/3 of the width rounded up to a
            multiple of 32, which holds as many weights as a plain feed-forward of 4 x width.
        dropout: applied to the embeddings and to what each sublayer adds, never to the attention
            weights (that would rule out the fused kernels on a CPU).
    """

    width: int = Field(default=512, ge=2)
    depth: int = Field(default=6, ge=1)
    heads: int = Field(default=8, ge=1)
    feed_forward: int | None = Field(default=None, ge=1)
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> TransformerOptions:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width {self.width} is not an even multiple of heads {self.heads}; "
                f"choose a width divisible by {2 * self.heads}"
            )
        return self

    @property
    def feed_forward_width(self) -> int:
        """Hidden width of the feed-forward."""
        return self.feed_forward or -(-8 * self.width // 96) * 32
