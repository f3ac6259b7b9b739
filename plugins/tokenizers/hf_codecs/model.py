"""EnCodec, DAC and Mimi of Hugging Face transformers as acoustic codecs.

Rows are encoded and decoded one by one. These models do not mask: their convolutions pad at the
end of their input (by reflection, repetition or zeros, layer by layer), attention and recurrence
read on into padding, and sums over a batch are taken in another order. In a batch, a row's codes
would depend on the rows beside it.

Shape legend: B batch, T samples, N frames, Q levels.
"""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import DacModel, EncodecModel, MimiModel, PreTrainedModel
from transformers.models.mimi.modeling_mimi import MimiEuclideanCodebook

from segue.core.fingerprints import add_tensors
from segue.core.interfaces import AcousticCodec, Ids, Lengths, Tokens, Wave
from segue.plugins.layers.hugging_face import load_model
from segue.plugins.tokenizers.hf_codecs.config import (
    DacOptions,
    EncodecOptions,
    FoundCodec,
    HfCodecOptions,
    MimiOptions,
)

# Reach of DAC's decoder, in samples: of its first and last convolutions (kernel 7), and of a
# block's residual units (kernel 7, three dilations).
_EDGE_REACH, _UNITS_REACH = 3, 3 * (1 + 3 + 9)


class HfCodec(AcousticCodec):
    """Run a pretrained codec as it is: it is neither trained nor fitted.

    Args:
        config: options; those that are kept record what was found at the source.
    """

    needs_training = False
    config: HfCodecOptions
    model_class: ClassVar[type[PreTrainedModel]]

    def __init__(self, config: HfCodecOptions) -> None:
        spec = config.spec()  # refuses what cannot be used before weights are read
        found = config.found
        if found is None:
            model = load_model(
                self.model_class, config.source.weights_directory(), config.pretrained,
                local_files_only=True,
            )  # fmt: skip
            found = FoundCodec(
                config=config.architecture(),
                weights=config.source.weights_hash(),
                tensors=_tensors_hash(model),
            )
        else:  # weights are still to be loaded from the checkpoint
            model = self.model_class(self.model_class.config_class.from_dict(dict(found.config)))
        super().__init__(config.model_copy(update={"num_levels": spec.num_levels, "found": found}))
        self.model = model.requires_grad_(False).eval()
        self.frame_size = spec.frame_size

    @abstractmethod
    def _encode(self, wave: Float[Tensor, "1 1 T"]) -> Int64[Tensor, "1 Q N"]:
        """Return the codes of one row, ``N = ceil(T / frame_size)``."""

    @abstractmethod
    def _decode(self, codes: Int64[Tensor, "1 q N"]) -> Float[Tensor, "1 T"]:
        """Return the audio of one row of at least one frame."""

    def train(self, mode: bool = True) -> HfCodec:
        """Set the mode, but keep the model inside in eval mode: some drop levels in the other."""
        super().train(mode)
        self.model.eval()
        return self

    def token_state(self) -> Mapping[str, Tensor]:
        """Return nothing while the weights are the source's: the options hold their hash."""
        assert self.config.found is not None
        unchanged = _tensors_hash(self.model) == self.config.found.tensors
        return {} if unchanged else self.state_dict()

    @torch.no_grad()
    def encode(self, wave: Wave, lengths: Lengths) -> Tokens:
        levels = self.spec.num_levels
        rows = [wave.new_zeros(levels, 0, dtype=torch.long) for _ in range(wave.shape[0])]
        for index, length in enumerate(lengths.tolist()):
            if length:
                row = wave[index, :length].to(self.model.dtype)
                rows[index] = self._encode(row[None, None])[0]
                assert rows[index].shape == (levels, -(-length // self.frame_size))
        return Tokens.stack(rows) if rows else Tokens.empty(0, levels, wave.device)

    @torch.no_grad()
    def decode(self, codes: Ids, lengths: Lengths) -> Wave:
        size = codes.shape[2] * self.frame_size
        wave = torch.zeros(codes.shape[0], size, dtype=self.model.dtype, device=codes.device)
        for index, frames in enumerate(lengths.tolist()):
            if frames:
                row = self._decode(codes[index : index + 1, :, :frames])[0]
                row = row[: frames * self.frame_size]  # some models add samples, some lack a few
                wave[index, : row.shape[0]] = row
        return wave


class EncodecCodec(HfCodec):
    """Run EnCodec (Défossez et al., arXiv 2210.13438) with any number of levels.

    It cannot stream: its decoder has an LSTM, so that a sample depends on all frames before it.
    """

    config: EncodecOptions
    model_class = EncodecModel

    def _encode(self, wave: Float[Tensor, "1 1 T"]) -> Int64[Tensor, "1 Q N"]:
        quantizer = self.model.quantizer
        # It takes a bandwidth and rounds down to levels; half a level more keeps clear of rounding.
        per_level = math.log2(quantizer.codebook_size) * quantizer.frame_rate / 1000
        bandwidth = (self.spec.num_levels + 0.5) * per_level
        return quantizer.encode(self.model.encoder(wave), bandwidth).transpose(0, 1)

    def _decode(self, codes: Int64[Tensor, "1 q N"]) -> Float[Tensor, "1 T"]:
        return self.model.decode(codes[None], [None]).audio_values[:, 0]


class DacCodec(HfCodec):
    """Run the Descript Audio Codec (Kumar et al., arXiv 2306.06546).

    It can stream: its convolutions look both ways, but not far.
    """

    config: DacOptions
    model_class = DacModel

    def __init__(self, config: HfCodecOptions) -> None:
        super().__init__(config)
        self.decode_context = dac_decode_context(self.model.config.upsampling_ratios)

    def _encode(self, wave: Float[Tensor, "1 1 T"]) -> Int64[Tensor, "1 Q N"]:
        # It was trained on audio whose last frame is filled with zeros.
        whole = nn.functional.pad(wave, (0, -wave.shape[2] % self.frame_size))
        return self.model.encode(whole, n_quantizers=self.spec.num_levels).audio_codes

    def _decode(self, codes: Int64[Tensor, "1 q N"]) -> Float[Tensor, "1 T"]:
        return self.model.decode(audio_codes=codes).audio_values


class MimiCodec(HfCodec):
    """Run Mimi (Défossez et al., Moshi, arXiv 2410.00037), 12.5 frames a second.

    Its first level was distilled from a semantic model, the others are residual. It cannot stream
    here: its decoder is causal but attends over many seconds.
    """

    config: MimiOptions
    model_class = MimiModel

    def _encode(self, wave: Float[Tensor, "1 1 T"]) -> Int64[Tensor, "1 Q N"]:
        self._drop_cache()
        levels = self.spec.num_levels
        # It cannot encode fewer levels than its semantic ones.
        count = max(levels, self.model.config.num_semantic_quantizers)
        return self.model.encode(wave, num_quantizers=count).audio_codes[:, :levels]

    def _decode(self, codes: Int64[Tensor, "1 q N"]) -> Float[Tensor, "1 T"]:
        self._drop_cache()
        return self.model.decode(codes).audio_values[:, 0]

    def _drop_cache(self) -> None:
        # Codebooks keep the vectors they once computed, even after other weights were loaded or the
        # model moved to another device.
        for part in self.model.quantizer.modules():
            if isinstance(part, MimiEuclideanCodebook):
                part._embed = None


def dac_decode_context(ratios: Sequence[int]) -> tuple[int, int]:
    """Return how many frames to the left and right of a frame its decoded samples depend on."""
    # Follow the samples of frame 0 from the last layer back to the first.
    low, high = -_EDGE_REACH, math.prod(ratios) - 1 + _EDGE_REACH
    for ratio in reversed(ratios):
        low, high = low - _UNITS_REACH, high + _UNITS_REACH
        # Transposed convolution of kernel 2 * ratio: sample t is made of the inputs i for which
        # 0 <= t + cut - i * ratio < 2 * ratio.
        cut = -(-ratio // 2)
        low, high = (low + cut) // ratio - 1, (high + cut) // ratio
    return _EDGE_REACH - low, high + _EDGE_REACH


def _tensors_hash(model: PreTrainedModel) -> str:
    digest = hashlib.sha256()
    add_tensors(digest, model.state_dict())
    return digest.hexdigest()
