"""The Descript Audio Codec (Kumar et al., arXiv 2306.06546) through Hugging Face transformers.

Its convolutions look both ways, so that its decoder has a finite context.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import DacModel

from segue.plugins.tokenizers.dac.config import DacOptions
from segue.plugins.tokenizers.hf_codecs.model import HfCodec

_EDGE_REACH = 3  # of the first and the last convolution, of kernel 7
_UNITS_REACH = 3 * (1 + 3 + 9)  # of a block's residual units: kernel 7, three dilations


class DacCodec(HfCodec):
    """DAC; what is encoded ends in zeros where it does not fill a frame, as it was trained.

    Args:
        config: options.
    """

    config: DacOptions
    model_class = DacModel

    def __init__(self, config: DacOptions) -> None:
        super().__init__(config)
        self.decode_context = decoder_context(self.model.config.upsampling_ratios)

    def _encode(self, wave: Float[Tensor, "1 1 T"]) -> Int64[Tensor, "1 Q N"]:
        whole = nn.functional.pad(wave, (0, -wave.shape[2] % self.frame_size))
        codes: Tensor = self.model.encode(whole, n_quantizers=self.spec.num_levels).audio_codes
        return codes

    def _decode(self, codes: Int64[Tensor, "1 q N"]) -> Float[Tensor, "1 T"]:
        wave: Tensor = self.model.decode(audio_codes=codes).audio_values
        return wave


def decoder_context(ratios: Sequence[int]) -> tuple[int, int]:
    """Frames to the left and right of a frame that its samples depend on.

    Args:
        ratios: of the decoder's upsampling, first layer first.
    """
    # What the samples of frame 0 are made of, from the last layer back to the first.
    low, high = -_EDGE_REACH, math.prod(ratios) - 1 + _EDGE_REACH
    for ratio in reversed(ratios):
        low, high = low - _UNITS_REACH, high + _UNITS_REACH
        # Transposed convolution of kernel 2 * ratio: sample t is made of the inputs i for which
        # 0 <= t + cut - i * ratio < 2 * ratio.
        cut = -(-ratio // 2)
        low, high = (low + cut) // ratio - 1, (high + cut) // ratio
    return _EDGE_REACH - low, high + _EDGE_REACH
