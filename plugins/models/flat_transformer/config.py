"""Options of the flat transformer. Imports no torch."""

from __future__ import annotations

from typing import Literal

from segue.plugins.layers.config import CausalOptions


class FlatTransformerOptions(CausalOptions):
    """Options of ``flat_transformer``.

    Attributes:
        positions: ``time`` gives tokens that sound at the same moment the same position;
            ``sequence`` counts tokens from the first one on.
        given_repeats: ``remove`` leaves out frames of every given slice that equal the one before,
            as AudioLM does with semantic tokens: a shorter prefix. With positions by time the
            model still knows when each token begins; with ``sequence`` it knows only their order.
            By time and with relative position encoding, rows no longer share the attention's
            biases, which takes memory.
    """

    positions: Literal["time", "sequence"] = "time"
    given_repeats: Literal["keep", "remove"] = "keep"
