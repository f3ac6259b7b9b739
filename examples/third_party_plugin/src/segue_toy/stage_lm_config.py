"""Options of the stage language model. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from segue.core.options import Options


class GruOptions(Options):
    """Options of the model.

    Attributes:
        width: units of the recurrent layer.
    """

    width: int = Field(default=128, ge=1)
