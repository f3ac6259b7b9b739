"""Options of the Hugging Face stage model. Imports neither torch nor transformers."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from segue.core.config import LoraConfig
from segue.core.options import Options
from segue.plugins.layers.config import SequenceOptions


class LoraOptions(Options):
    """Ask for ``training.lora`` as configs and checkpoints of Segue 0.1 do.

    Attributes:
        rank, alpha, dropout: those of ``training.lora``.
        target_modules: its ``targets``.
    """

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0.0)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    target_modules: tuple[str, ...] | None = Field(default=None, min_length=1)


class HfCausalOptions(SequenceOptions):
    """Options of ``hf_causal``: ``architecture`` or ``pretrained``, and the options of either.

    Attributes:
        architecture: a transformers config with its ``model_type``, e.g. ``{model_type: llama,
            hidden_size: 256, num_hidden_layers: 6}``: the backbone starts from random weights.
            Values about a text vocabulary have no effect.
        pretrained: a local directory written by ``save_pretrained`` or a name on huggingface.co,
            with safetensors weights: the backbone starts from that text model.
        pretrained_architecture: the config found at ``pretrained``, written by the component
            itself, not by users. With it the backbone is built without reading ``pretrained``,
            because its weights come from the checkpoint.
        lora: deprecated; set ``lora`` in ``training``, with ``also_train: [tokens.*, heads.*]``.
    """

    filled_in = frozenset({"pretrained_architecture"})

    architecture: dict[str, Any] | None = None
    pretrained: str | None = Field(default=None, min_length=1)
    pretrained_architecture: dict[str, Any] | None = None
    lora: LoraOptions | None = None

    @field_validator("architecture", "pretrained_architecture")
    @classmethod
    def _names_its_type(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None and not isinstance(value.get("model_type"), str):
            raise ValueError("model_type is missing: name the architecture, e.g. model_type: llama")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> HfCausalOptions:
        if (self.architecture is None) == (self.pretrained is None):
            count = "neither" if self.pretrained is None else "both"
            raise ValueError(
                f"{count} of architecture and pretrained is set; set architecture to start from "
                "random weights, or pretrained to start from a text model"
            )
        if self.pretrained is None and self.pretrained_architecture is not None:
            raise ValueError("pretrained_architecture is set without pretrained; use architecture")
        if self.pretrained is None and self.lora is not None:
            raise ValueError(
                "lora would adapt a backbone of random weights; set pretrained, or leave lora out"
            )
        return self

    @property
    def older_lora(self) -> LoraConfig | None:
        """Return what ``lora`` asks for as a setting of training."""
        if self.lora is None:
            return None
        new = ("tokens.*", "heads.*", *(["end_head.*"] if self.end_of_audio else []))
        values = self.lora.model_dump(exclude={"target_modules"})
        return LoraConfig(**values, targets=self.lora.target_modules, also_train=new)
