"""EnCodec (Défossez et al., arXiv 2210.13438) through Hugging Face transformers.

Its decoder holds an LSTM, so that a sample depends on all frames before it: there is no finite
context to stream with.
"""

from __future__ import annotations

import math

from jaxtyping import Float, Int64
from torch import Tensor
from transformers import EncodecModel

from segue.plugins.tokenizers.encodec.config import EncodecOptions
from segue.plugins.tokenizers.hf_codecs.model import HfCodec


class EncodecCodec(HfCodec):
    """EnCodec without its bandwidths: any number of levels can be used.

    Args:
        config: options.
    """

    config: EncodecOptions
    model_class = EncodecModel

    def _encode(self, wave: Float[Tensor, "1 1 T"]) -> Int64[Tensor, "1 Q N"]:
        quantizer = self.model.quantizer
        # It takes a bandwidth and rounds down to levels; half a level keeps clear of rounding.
        per_level = math.log2(quantizer.codebook_size) * quantizer.frame_rate / 1000
        bandwidth = (self.spec.num_levels + 0.5) * per_level
        codes: Tensor = quantizer.encode(self.model.encoder(wave), bandwidth)
        return codes.transpose(0, 1)

    def _decode(self, codes: Int64[Tensor, "1 q N"]) -> Float[Tensor, "1 T"]:
        wave: Tensor = self.model.decode(codes[None], [None]).audio_values
        return wave[:, 0]
