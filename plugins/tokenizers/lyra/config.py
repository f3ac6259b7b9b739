"""Options of the Lyra codec. Imports neither torch nor LiteRT."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt

from segue.core.errors import ConfigError
from segue.core.options import Options, TokenizerOptions
from segue.core.spec import TokenSpec

SAMPLE_RATE, FRAME_SIZE = 16_000, 320
MAX_QUANTIZERS = 46
CODES_PER_QUANTIZER = 16
#: Lyra's models, and the files they lie in.
FILES = {
    "encoder": "soundstream_encoder.tflite",
    "quantizer": "quantizer.tflite",
    "decoder": "lyragan.tflite",
}


class FoundFile(Options):
    """Record a model file: its size in bytes and the SHA-256 of its content."""

    size: PositiveInt
    sha256: str


class LyraOptions(TokenizerOptions):
    """Configure ``lyra``.

    Attributes:
        weights: a directory with Lyra's ``soundstream_encoder.tflite``, ``quantizer.tflite`` and
            ``lyragan.tflite``.
        num_quantizers: how many of its 46 quantizers of 16 codes to use, an even number: a pair
            makes one level of 256 codes. 8, 16 and 46 are 1.6, 3.2 and 9.2 kbit/s.
        found: written by the codec itself, not for configs. With it the codec is built without
            reading ``weights``, since they come from its checkpoint.
    """

    filled_in = frozenset({"found"})

    weights: str = Field(min_length=1)
    num_quantizers: int = Field(default=16, ge=2, le=MAX_QUANTIZERS, multiple_of=2)
    found: dict[str, FoundFile] | None = None

    def spec(self) -> TokenSpec:
        rate = Fraction(SAMPLE_RATE, FRAME_SIZE)
        return TokenSpec(SAMPLE_RATE, rate, self.num_quantizers // 2, CODES_PER_QUANTIZER**2)

    def identity(self) -> dict[str, Any]:
        """Identify the models by their content, wherever their files lie."""
        found = self.found or describe(read_models(self.weights))
        hashes = {name: file.sha256 for name, file in found.items()}
        return {"files": hashes, "num_quantizers": self.num_quantizers}


def read_models(weights: str) -> dict[str, bytes]:
    """Return the content of each of the models in a directory.

    Raises:
        ConfigError: if one is missing.
    """
    directory = Path(weights).expanduser()
    for file in FILES.values():
        if not (directory / file).is_file():
            raise ConfigError(
                "weights",
                f"{weights} holds no {file}" if directory.is_dir() else f"{weights} does not exist",
                f"name a directory with {', '.join(FILES.values())}",
            )
    return {name: (directory / file).read_bytes() for name, file in FILES.items()}


def describe(models: dict[str, bytes]) -> dict[str, FoundFile]:
    """Return size and hash of each model."""
    return {
        name: FoundFile(size=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in models.items()
    }
