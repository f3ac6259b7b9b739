"""Options of the metric of notes. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from segue.core.options import Options


class NotesOptions(Options):
    """Options of ``notes``.

    Attributes:
        model: a Basic Pitch model as ONNX; empty takes the one inside the installed package.
        onset: probability from which a note begins.
        frame: probability down to which it sounds.
    """

    model: str = ""
    onset: float = Field(default=0.5, gt=0, lt=1)
    frame: float = Field(default=0.3, gt=0, lt=1)
