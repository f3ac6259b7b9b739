"""Mimi (Défossez et al., Moshi, arXiv 2410.00037) through Hugging Face transformers.

Its first level was distilled from a semantic model, the others are residual. Its decoder is causal
but attends over many seconds, so that it is not decoded in pieces.
"""

from __future__ import annotations

from jaxtyping import Float, Int64
from torch import Tensor
from transformers import MimiModel
from transformers.models.mimi.modeling_mimi import MimiEuclideanCodebook

from segue.plugins.tokenizers.hf_codecs.model import HfCodec
from segue.plugins.tokenizers.mimi.config import MimiOptions


class MimiCodec(HfCodec):
    """Mimi, at 12.5 frames a second.

    Args:
        config: options.
    """

    config: MimiOptions
    model_class = MimiModel

    def _encode(self, wave: Float[Tensor, "1 1 T"]) -> Int64[Tensor, "1 Q N"]:
        self._forget()
        levels = self.spec.num_levels
        # It does not encode fewer levels than its semantic ones.
        count = max(levels, self.model.config.num_semantic_quantizers)
        codes: Tensor = self.model.encode(wave, num_quantizers=count).audio_codes
        return codes[:, :levels]

    def _decode(self, codes: Int64[Tensor, "1 q N"]) -> Float[Tensor, "1 T"]:
        self._forget()
        wave: Tensor = self.model.decode(codes).audio_values
        return wave[:, 0]

    def _forget(self) -> None:
        """Codebooks keep the vectors that they once computed, even after other weights were loaded
        or all were moved to another device."""
        for part in self.model.quantizer.modules():
            if isinstance(part, MimiEuclideanCodebook):
                part._embed = None
