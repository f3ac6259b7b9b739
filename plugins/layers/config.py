"""Options shared by the transformer stage models. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from segue.core.options import Options

#: Endless layers would fill memory.
Layers = Annotated[int, Field(ge=1, le=1000)]

#: Sizes by name. ``paper`` is the size of each of AudioLM's three stages (arXiv 2209.03143).
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 128, "depth": 2, "heads": 2},
    "small": {"width": 256, "depth": 6, "heads": 4},
    "base": {"width": 512, "depth": 6, "heads": 8},
    "medium": {"width": 768, "depth": 12, "heads": 12},
    "paper": {
        "width": 1024,
        "depth": 12,
        "heads": 16,
        "feed_forward": 4096,
        "position_encoding": "relative",
    },
}


def _offer_sizes(schema: dict[str, Any]) -> None:
    """Let editors know of the key ``size``, which stands for others."""
    schema["properties"]["size"] = {"enum": list(SIZES), "description": "Stands for single values."}


def check_heads(width: int, heads: int, prefix: str = "") -> None:
    """Raise ValueError unless ``width / heads`` is an even number."""
    if width % (2 * heads):
        raise ValueError(
            f"{prefix}width {width} is not an even multiple of {prefix}heads {heads}; "
            f"choose a width divisible by {2 * heads}"
        )


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("must be odd, so that a frame has as many neighbours before as after")
    return value


#: The number of frames that a convolution spans.
OddKernel = Annotated[int, Field(ge=1), AfterValidator(_odd)]


class ConditionOptions(Options):
    """Options of models with given slices.

    Attributes:
        condition_dropout: share of training rows for which the given slices are hidden; more than
            0 allows classifier-free guidance.
    """

    of_training = frozenset({"condition_dropout"})

    condition_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)


class SequenceOptions(ConditionOptions):
    """Options of models that predict from left to right.

    Attributes:
        end_of_audio: learn where recordings end, and end there when generating. Only for a stage
            without given slices.
    """

    end_of_audio: bool = False


class TransformerOptions(ConditionOptions):
    """Size of a pre-norm transformer.

    A config may name a ``size`` (tiny, small, base, medium, paper) instead of the single values.

    Attributes:
        width: D, channels of the residual stream.
        depth: number of layers.
        heads: attention heads; ``width / heads`` must be even (rotary positions turn pairs).
        feed_forward: hidden width of the SwiGLU; None takes 8/3 of the width rounded up to a
            multiple of 32, which holds as many weights as a plain feed-forward of 4 x width.
        dropout: applied to the embeddings and to the output of each sublayer, never to the
            attention weights (that would rule out the fused kernels on a CPU).
        position_encoding: ``rotary`` (Su et al., arXiv 2104.09864) or ``relative``, T5's learnt
            bias by distance (Raffel et al., arXiv 1910.10683).
        relative_buckets: number of distances that the relative bias distinguishes, half of them
            for each sign.
        relative_reach: distance from which on all distances share one bias.
    """

    model_config = ConfigDict(json_schema_extra=_offer_sizes)
    of_training = frozenset({"condition_dropout", "dropout"})

    width: int = Field(default=512, ge=2)
    depth: Layers = 6
    heads: int = Field(default=8, ge=1)
    feed_forward: int | None = Field(default=None, ge=1)
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    position_encoding: Literal["rotary", "relative"] = "rotary"
    relative_buckets: int = Field(default=64, ge=4)
    relative_reach: int = Field(default=1024, ge=4)

    @model_validator(mode="before")
    @classmethod
    def _size_by_name(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "size" not in data:
            return data
        rest = {key: value for key, value in data.items() if key != "size"}
        size = data["size"]
        if not isinstance(size, str) or size not in SIZES:
            raise ValueError(f"size {size!r} is unknown; choose one of {', '.join(SIZES)}")
        for key, value in SIZES[size].items():
            if rest.get(key, value) != value:
                raise ValueError(
                    f"size {size} means {key} {value}, but {key} is {rest[key]!r}; "
                    "leave one of the two out"
                )
        return SIZES[size] | rest

    @model_validator(mode="after")
    def _heads_divide_width(self) -> TransformerOptions:
        check_heads(self.width, self.heads)
        return self

    @property
    def feed_forward_width(self) -> int:
        """Hidden width of the feed-forward."""
        return self.feed_forward or -(-8 * self.width // 96) * 32


class CausalOptions(TransformerOptions, SequenceOptions):
    """Options of transformers that predict from left to right.

    Attributes:
        attention_window: number of positions that one position sees, itself included; None sees
            all. A stage without given slices then keeps only that many keys and values: audio of
            any length in constant memory.
    """

    attention_window: int | None = Field(default=None, ge=1)


class GivenOptions(Options):
    """Options of models that see given slices frame by frame.

    Attributes:
        given_kernel: frames that one convolution over the given slices spans; odd.
        given_blocks: number of such convolutions.
    """

    given_kernel: OddKernel = 9
    given_blocks: int = Field(default=2, ge=0)
