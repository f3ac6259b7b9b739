"""Options of the Mimi codec. Imports neither torch nor transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from segue.core.errors import ConfigError
from segue.plugins.tokenizers.hf_codecs.config import CodecShape, HfCodecOptions, require_mono

USUAL_LEVELS = 8  # 1.1 kbit/s, as in Moshi


class MimiOptions(HfCodecOptions):
    """Options of ``mimi``; by default ``num_levels`` is at most 8.

    Attributes:
        pretrained: a directory, or a model of huggingface.co such as ``kyutai/mimi``.
    """

    model_type: ClassVar[str] = "mimi"

    @classmethod
    def shape(cls, values: Mapping[str, Any]) -> CodecShape:
        require_mono(values.get("audio_channels", 1), "use kyutai/mimi")
        for half in ("encoder_config", "decoder_config"):
            if half in values and values[half] is None:
                raise ConfigError("pretrained", f"was saved without its {half[:7]}", "save it all")
        rate = values.get("sampling_rate", 24_000)
        hop = math.prod(values.get("upsampling_ratios") or (8, 6, 5, 4))
        # Older configs name the frame rate, later ones halve that of the convolutions.
        frame_rate = values.get("frame_rate") or rate / (2 * hop)
        size = hop * int(math.ceil(rate / hop) / frame_rate)
        levels = values.get("num_quantizers", 32)
        codes = values.get("codebook_size", 2048)
        return CodecShape(rate, size, levels, min(levels, USUAL_LEVELS), codes)
