"""A causal language model of Hugging Face without its text: embeddings in, hidden states out.

A stage reads and predicts audio tokens only, as in TWIST (Hassid et al., arXiv 2305.13009). The
text embeddings and the text head are dropped: they would take memory, and space in every
checkpoint.

Shape legend: B batch, N positions, D width.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import DynamicCache, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from segue.core.errors import ConfigError

#: Arguments that a backbone's ``forward`` must take: embeddings, and a cache of keys and values.
_NEEDED = ("inputs_embeds", "attention_mask", "past_key_values")


class Backbone(nn.Module):
    """The layers of a causal language model.

    Args:
        causal: a ``...ForCausalLM`` of transformers; it is taken apart.
        alpha: scale of the adapters that checkpoints of Segue 0.1 keep beside the weights.

    Raises:
        ConfigError: if its layers look ahead or take other arguments.
    """

    def __init__(self, causal: PreTrainedModel, place: str, alpha: float = 0.0) -> None:
        super().__init__()
        self._alpha = alpha
        head, model = causal.get_output_embeddings(), causal.base_model
        takes = inspect.signature(model.forward).parameters
        for name in _NEEDED:
            if name not in takes:
                raise _unfit(causal, place, f"which takes no {name}")
        self._takes_positions = "position_ids" in takes
        table = model.get_input_embeddings()
        #: D of the inputs, and of the hidden states.
        self.width_in: int = table.weight.shape[1]
        self.width_out: int = self.width_in if head is None else head.weight.shape[1]
        model.set_input_embeddings(nn.Identity())
        self.model = model
        # Some architectures have is_decoder False although they never look ahead: try it.
        if getattr(causal.config, "is_decoder", None) is False and self._looks_ahead():
            raise _unfit(causal, place, "which looks ahead unless is_decoder is true")

    @torch.no_grad()
    def _looks_ahead(self) -> bool:
        """Return whether the first of two positions depends on the second."""
        x = torch.randn(2, 2, self.width_in)
        x[1, 0] = x[0, 0]
        one, other = self.eval()(x)[:, 0]
        self.train()
        return not torch.allclose(one, other, atol=1e-5)

    @property
    def limit(self) -> int | None:
        """Number of positions that a sequence may have, if the architecture sets a limit."""
        limit: int | None = getattr(self.model.config, "max_position_embeddings", None)
        rope = getattr(self.model.config, "rope_parameters", None) or {}
        if rope.get("rope_type") == "longrope":
            # Beyond that length all positions turn by other angles: a row would depend on its
            # batch.
            return int(rope.get("original_max_position_embeddings") or limit or 0) or None
        return limit

    def forward(
        self, x: Float[Tensor, "B N D"], positions: Tensor | None = None, **arguments: Any
    ) -> Float[Tensor, "B N D"]:
        """Return hidden states of embedded inputs.

        Args:
            x: whole rows padded on the right: nothing valid looks ahead, so no mask is needed.
            positions: ``[B, N]``; None counts from 0.
            arguments: cache and mask of a step; see ``CachedSequence``.
        """
        # Always passed if possible: architectures count differently by default.
        if self._takes_positions:
            if positions is None:
                positions = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
            arguments["position_ids"] = positions
        arguments.setdefault("use_cache", False)
        return self.model(inputs_embeds=x, **arguments).last_hidden_state

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *arguments: Any
    ) -> None:
        """Merge the adapters of a checkpoint of Segue 0.1, which peft had put around layers."""
        for key in [key for key in state_dict if ".base_layer." in key]:
            value = state_dict.pop(key)
            name, _, kind = key.rpartition(".base_layer.")
            if kind == "weight":
                up, down = (state_dict.pop(f"{name}.lora_{side}.default.weight") for side in "BA")
                update = self._alpha / len(down) * up @ down
                layer = self.get_submodule(name.removeprefix(prefix))
                value = value + (update.T if isinstance(layer, Conv1D) else update)
                if parametrize.is_parametrized(layer, "weight"):
                    kind = "parametrizations.weight.original"
            state_dict[f"{name}.{kind}"] = value
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class CachedSequence:
    """A prefix in one pass, then one position of every row per step.

    Attributes:
        hidden: ``[B, D]``, hidden state of the last position of the prefix.

    Args:
        x: ``[B, N, D]`` embedded prefix of at least one position; padding on the left.
        valid: ``[B, N]``, False at padding.
        steps: number of further positions.
    """

    def __init__(
        self, backbone: Backbone, x: Float[Tensor, "B N D"], valid: Bool[Tensor, "B N"], steps: int
    ) -> None:
        self._backbone = backbone
        self._cache = DynamicCache(config=backbone.model.config)
        self._filled = 0
        self._mask: Tensor | None = None
        if not bool(valid.all()):
            self._mask = torch.cat([valid, valid.new_ones(len(valid), steps)], dim=1).long()
        positions = (valid.cumsum(dim=1) - 1).clamp_min(0)
        self._last = positions[:, -1:]
        self.hidden = self._advance(x, positions)

    def step(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Return the hidden state of one more position of every row."""
        self._last = self._last + 1
        return self._advance(x[:, None], self._last)

    def _advance(self, x: Tensor, positions: Tensor) -> Float[Tensor, "B D"]:
        self._filled += x.shape[1]
        mask = None if self._mask is None else self._mask[:, : self._filled]
        hidden: Tensor = self._backbone(
            x, positions, attention_mask=mask, past_key_values=self._cache, use_cache=True
        )
        return hidden[:, -1]


def _unfit(causal: PreTrainedModel, place: str, problem: str) -> ConfigError:
    return ConfigError(
        place,
        f"is of type {causal.config.model_type!r}, {problem}",
        "choose one that reads from left to right and keeps a cache of keys and values, such as "
        "llama, qwen3, mistral or gpt2",
    )
