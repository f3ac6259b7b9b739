"""Describe the shape of acoustic tokens: frames per second, levels, codes per level. Imports no
torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from segue.core.errors import ConfigError

PATTERN = re.compile(r"(\d+(?:\.\d+)?)x(\d+)x(\d+)", re.ASCII)
EXAMPLE = "write 25x16x1024,50x8x1024: frames per second, levels, codes per level"
WINDOW_HOPS = 2  # least samples of a codec's window, in frames


@dataclass(frozen=True)
class CodeShape:
    """One candidate.

    Attributes:
        frame_rate: frames per second.
        num_levels: residual levels Q.
        codebook_size: codes per level V.
    """

    frame_rate: Fraction
    num_levels: int
    codebook_size: int

    @classmethod
    def parse(cls, text: str) -> CodeShape:
        """Read a shape such as ``50x8x1024``."""
        found = PATTERN.fullmatch(text)
        if found is None:
            raise ConfigError("codes", f"{text!r} is not a shape of codes", EXAMPLE)
        shape = cls(Fraction(found[1]), int(found[2]), int(found[3]))
        if not shape.frame_rate or not shape.num_levels or shape.codebook_size < 2:
            problem = f"{text!r} has no frames, no levels or fewer than 2 codes"
            raise ConfigError("codes", problem, EXAMPLE)
        return shape

    def __str__(self) -> str:
        return f"{float(self.frame_rate):.15g}x{self.num_levels}x{self.codebook_size}"

    @property
    def label(self) -> str:
        return f"{float(self.frame_rate):g} Hz, {self.num_levels} levels of {self.codebook_size}"

    def options(self, codec: Mapping[str, Any]) -> dict[str, int]:
        """Return the codec options that give its tokens this shape.

        The window is the codec's own, or two frames if that is longer.

        Args:
            codec: its options, with ``sample_rate`` and ``window``.
        """
        hop = codec["sample_rate"] / self.frame_rate
        if hop.denominator != 1 or hop.numerator % 2:
            problem = f"{self} is of frames of {float(hop):g} samples at {codec['sample_rate']} Hz"
            raise ConfigError("codes", problem, "take a frame rate of an even whole number of them")
        samples = hop.numerator
        return {
            "hop": samples,
            "window": max(codec["window"], WINDOW_HOPS * samples),
            "num_levels": self.num_levels,
            "codebook_size": self.codebook_size,
        }


def read_shapes(text: str) -> tuple[str, ...]:
    """Read comma-separated candidates, each once.

    Raises:
        ConfigError: if one is not a shape of codes.
    """
    return tuple(dict.fromkeys(str(CodeShape.parse(part.strip())) for part in text.split(",")))
