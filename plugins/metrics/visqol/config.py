"""Options of ViSQOL. Imports no torch."""

from __future__ import annotations

from typing import Literal

from segue.core.options import Options


class VisqolOptions(Options):
    """Options of ``visqol``.

    Attributes:
        mode: ``speech`` compares at 16 kHz, ``audio`` (for music) at 48 kHz; a score says
            something beside others of the same mode only.
        lattice: in speech mode, map similarity to opinion by the deep lattice network that ViSQOL
            3.3 brought, which needs ``visqol-python[lattice]``, instead of the polynomial.
    """

    mode: Literal["speech", "audio"] = "speech"
    lattice: bool = False
