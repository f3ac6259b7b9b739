"""Options of the note k-means tokenizer. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from segue.plugins.tokenizers.common.options import RegisterOptions


class NoteKMeansOptions(RegisterOptions):
    """Configure ``note_kmeans``.

    Attributes:
        channels: of the network's layers.
    """

    channels: int = Field(default=24, ge=1)
