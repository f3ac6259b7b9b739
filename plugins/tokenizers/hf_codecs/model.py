"""A codec of Hugging Face transformers as an acoustic codec of Segue.

Rows are encoded and decoded one by one. These models do not mask: their convolutions pad at the
true end of what they are given (by reflection, repetition or zeros, layer by layer), attention and
recurrence read on into padding, and in a batch sums are taken in another order, so that a row's
codes would depend on what it is batched with. One by one they do not, whatever the model.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import PreTrainedModel

from segue.core.interfaces import AcousticCodec, Ids, Lengths, Tokens, Wave, add_tensors
from segue.plugins.tokenizers.common.hf_model import load_model
from segue.plugins.tokenizers.common.hf_source import weights_hash
from segue.plugins.tokenizers.hf_codecs.config import FoundCodec, HfCodecOptions


class HfCodec(AcousticCodec):
    """Runs a pretrained codec as it is: it is neither trained nor fitted.

    Args:
        config: options; those that are kept say what was found at the source, so that a saved
            codec is opened without it.
    """

    needs_training = False
    config: HfCodecOptions
    model_class: ClassVar[type[PreTrainedModel]]

    def __init__(self, config: HfCodecOptions) -> None:
        spec = config.spec()  # refuses what cannot be used before weights are read
        if config.found is None:
            model, found = _from_source(self.model_class, config)
        else:
            model, found = _from_config(self.model_class, config.found.config), config.found
        kept = {"num_levels": spec.num_levels, "found": found}
        super().__init__(config.model_copy(update=kept))
        self.model = model.requires_grad_(False).eval()
        self.frame_size = spec.frame_size

    @abstractmethod
    def _encode(self, wave: Float[Tensor, "1 1 T"]) -> Int64[Tensor, "1 Q N"]:
        """Codes of one row, ``N = ceil(T / frame_size)``."""

    @abstractmethod
    def _decode(self, codes: Int64[Tensor, "1 q N"]) -> Float[Tensor, "1 T"]:
        """Audio of one row of at least one frame."""

    def train(self, mode: bool = True) -> HfCodec:
        """The model inside stays in eval mode: some ignore the number of levels in the other."""
        super().train(mode)
        self.model.eval()
        return self

    def token_state(self) -> Mapping[str, Tensor]:
        """Nothing as long as the weights are those that were found: the options' hash of the
        source stands for them. All of them otherwise."""
        state = self.state_dict()
        assert self.config.found is not None
        return {} if _tensors_hash(self.model) == self.config.found.tensors else state

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


def _from_source(
    model_class: type[PreTrainedModel], config: HfCodecOptions
) -> tuple[PreTrainedModel, FoundCodec]:
    model = load_model(model_class, config.pretrained, config.revision)
    weights = weights_hash(config.pretrained, config.revision)
    found = FoundCodec(config=config.architecture(), weights=weights, tensors=_tensors_hash(model))
    return model, found


def _from_config(model_class: type[PreTrainedModel], values: dict[str, Any]) -> PreTrainedModel:
    """The architecture with weights that are still to be loaded."""
    return model_class(model_class.config_class.from_dict(dict(values)))


def _tensors_hash(model: PreTrainedModel) -> str:
    digest = hashlib.sha256()
    add_tensors(digest, model.state_dict())
    return digest.hexdigest()
