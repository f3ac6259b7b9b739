"""Options of the flat transformer. Imports no torch."""

from __future__ import annotations

from typing import Literal

from segue.plugins.models.common.config import CausalOptions


class FlatTransformerOptions(CausalOptions):
    """Options of ``flat_transformer``.

    Attributes:
        positions: ``time`` gives tokens that sound at the same moment the same position, so that
            what to look at in a given slice does not depend on how far the target has come;
            ``sequence`` counts tokens from the first one on.
        given_repeats: ``remove`` leaves out given frames that are the same as the one before, as
            AudioLM does with semantic tokens: a shorter prefix. With positions by time the model
            still knows how long a token lasts; with ``sequence`` it does not, as in the paper.
    """

    positions: Literal["time", "sequence"] = "time"
    given_repeats: Literal["keep", "remove"] = "keep"
