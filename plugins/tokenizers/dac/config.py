"""Options of the DAC codec. Imports neither torch nor transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from segue.plugins.tokenizers.hf_codecs.config import CodecShape, HfCodecOptions


class DacOptions(HfCodecOptions):
    """Options of ``dac``; by default all of its quantizers are used.

    Attributes:
        pretrained: a directory, or a model of huggingface.co such as ``descript/dac_16khz``.
    """

    model_type: ClassVar[str] = "dac"

    @classmethod
    def shape(cls, values: Mapping[str, Any]) -> CodecShape:
        rate = values.get("sampling_rate", 16_000)
        size = math.prod(values.get("downsampling_ratios", (2, 4, 8, 8)))
        levels = values.get("n_codebooks", 9)
        return CodecShape(rate, size, levels, levels, values.get("codebook_size", 1024))
