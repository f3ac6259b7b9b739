"""Options of the Lyra codec. Imports neither torch nor LiteRT."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt

from segue.core.errors import ConfigError
from segue.core.options import Options, TokenizerOptions
from segue.core.spec import TokenSpec
from segue.plugins.tokenizers.common.sources import file_hash

SAMPLE_RATE, FRAME_SIZE = 16_000, 320
MAX_QUANTIZERS = 46
CODES_PER_QUANTIZER = 16
#: What Lyra calls its models, and the files they lie in.
FILES = {
    "encoder": "soundstream_encoder.tflite",
    "quantizer": "quantizer.tflite",
    "decoder": "lyragan.tflite",
}


class FoundFile(Options):
    """A model file that was found: its size in bytes and the SHA-256 of its content."""

    size: PositiveInt
    sha256: str


class LyraOptions(TokenizerOptions):
    """Options of ``lyra``.

    Attributes:
        weights: a directory with Lyra's ``soundstream_encoder.tflite``, ``quantizer.tflite`` and
            ``lyragan.tflite``.
        num_quantizers: how many of its 46 quantizers of 16 codes to use, an even number: a pair
            makes one level of 256 codes. 8, 16 and 46 are 1.6, 3.2 and 9.2 kbit/s.
        found: written by the codec itself, not for configs. With it the codec is built without
            reading anything at ``weights``, since they come from the checkpoint that says so.
    """

    weights: str = Field(min_length=1)
    num_quantizers: int = Field(default=16, ge=2, le=MAX_QUANTIZERS, multiple_of=2)
    found: dict[str, FoundFile] | None = None

    def spec(self) -> TokenSpec:
        rate = Fraction(SAMPLE_RATE, FRAME_SIZE)
        return TokenSpec(SAMPLE_RATE, rate, self.num_quantizers // 2, CODES_PER_QUANTIZER**2)

    def identity(self) -> dict[str, Any]:
        found = self.found or find(self.weights)
        hashes = {name: file.sha256 for name, file in found.items()}
        return {"files": hashes, "num_quantizers": self.num_quantizers}


def model_path(weights: str, name: str) -> Path:
    """The file of one of the models.

    Raises:
        ConfigError: if there is none.
    """
    path = Path(weights).expanduser() / FILES[name]
    if not path.is_file():
        problem = "holds no " + path.name if path.parent.is_dir() else "is no directory"
        raise ConfigError(
            "weights", f"{weights} {problem}", f"name a directory with {', '.join(FILES.values())}"
        )
    return path


def find(weights: str) -> dict[str, FoundFile]:
    """Size and hash of each model.

    Raises:
        ConfigError: if one is missing.
    """
    paths = {name: model_path(weights, name) for name in FILES}
    return {
        name: FoundFile(size=path.stat().st_size, sha256=file_hash(path))
        for name, path in paths.items()
    }
