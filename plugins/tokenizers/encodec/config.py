"""Options of the EnCodec codec. Imports neither torch nor transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from segue.core.errors import ConfigError
from segue.plugins.tokenizers.hf_codecs.config import CodecShape, HfCodecOptions, require_mono

USUAL_BITRATE = 6000  # bit/s, the middle of those it was trained for
_FIX = "use one for mono audio, such as facebook/encodec_24khz"


class EncodecOptions(HfCodecOptions):
    """Options of ``encodec``; by default ``num_levels`` comes to at most 6 kbit/s.

    Attributes:
        pretrained: a directory, or a model of huggingface.co such as ``facebook/encodec_24khz``.
    """

    model_type: ClassVar[str] = "encodec"

    @classmethod
    def shape(cls, values: Mapping[str, Any]) -> CodecShape:
        require_mono(values.get("audio_channels", 1), _FIX)
        if values.get("normalize", False) or values.get("chunk_length_s") is not None:
            raise ConfigError(
                "pretrained",
                "normalises its audio in chunks and needs their scales to decode, which are no "
                "tokens",
                _FIX,
            )
        rate = values.get("sampling_rate", 24_000)
        size = math.prod(values.get("upsampling_ratios", (8, 5, 4, 2)))
        codes = values.get("codebook_size", 1024)
        per_level = math.ceil(rate / size) * math.ceil(math.log2(codes))  # bit/s, as it counts them
        bandwidth = values.get("target_bandwidths", (24.0,))[-1]
        levels = int(1000 * bandwidth // per_level)
        return CodecShape(
            rate, size, levels, max(1, min(levels, USUAL_BITRATE // per_level)), codes
        )
