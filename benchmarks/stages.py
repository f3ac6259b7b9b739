"""Stage models of one size for the benchmarks: AudioLM's stages at 50 acoustic frames a second.

Semantic tokens come at 25 Hz; the first 4 acoustic levels are coarse, the next 8 fine.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import torch
from torch import nn

from segue.core.interfaces import StageBatch, StageLM, Tokens
from segue.core.options import Decoding, Options, Sampling
from segue.core.sampling import row_generators
from segue.core.spec import SliceSpec, StageSpec
from segue.plugins.models.delay_transformer.config import DelayTransformerOptions
from segue.plugins.models.delay_transformer.model import DelayTransformer
from segue.plugins.models.depth_transformer.config import DepthTransformerOptions
from segue.plugins.models.depth_transformer.model import DepthTransformer
from segue.plugins.models.flat_transformer.config import FlatTransformerOptions
from segue.plugins.models.flat_transformer.model import FlatTransformer
from segue.plugins.models.masked_transformer.config import MaskedTransformerOptions
from segue.plugins.models.masked_transformer.model import MaskedTransformer

CODES, SEMANTIC_CODES, COARSE, FINE = 1024, 1024, 4, 8
FRAME_RATE, SEMANTIC_RATE = Fraction(50), Fraction(25)

SEMANTIC = SliceSpec("semantic", 0, 1, SEMANTIC_CODES, SEMANTIC_RATE)
STAGES = {
    "semantic": StageSpec("semantic", SEMANTIC),
    "coarse": StageSpec("coarse", SliceSpec("acoustic", 0, COARSE, CODES, FRAME_RATE), (SEMANTIC,)),
    "fine": StageSpec(
        "fine",
        SliceSpec("acoustic", COARSE, COARSE + FINE, CODES, FRAME_RATE),
        (SliceSpec("acoustic", 0, COARSE, CODES, FRAME_RATE),),
    ),
    "all": StageSpec(
        "all", SliceSpec("acoustic", 0, COARSE + FINE, CODES, FRAME_RATE), (SEMANTIC,)
    ),
}

#: The size that all peers are compared at: width, depth and heads.
SIZE = {"width": 512, "depth": 6, "heads": 8}

_FAMILIES: dict[str, tuple[type[Options], Callable[..., StageLM]]] = {
    "flat": (FlatTransformerOptions, FlatTransformer),
    "delay": (DelayTransformerOptions, DelayTransformer),
    "depth": (DepthTransformerOptions, DepthTransformer),
    "masked": (MaskedTransformerOptions, MaskedTransformer),
}


def build(family: str, stage: str, **options: object) -> StageLM:
    """Return an untrained model at ``SIZE``, in eval mode: its weights do not change the time."""
    torch.manual_seed(0)
    if family == "hf_causal":
        return _llama(stage).eval()
    config, model = _FAMILIES[family]
    return model(config.model_validate(SIZE | options), STAGES[stage]).eval()


def _llama(stage: str) -> StageLM:
    """Return Llama of transformers at ``SIZE``, with as many weights in its layers.

    Raises:
        ImportError: if transformers is not installed.
    """
    from segue.plugins.models.hf_causal.config import HfCausalOptions
    from segue.plugins.models.hf_causal.model import HfCausalLM

    architecture = {
        "model_type": "llama",
        "hidden_size": SIZE["width"],
        "num_hidden_layers": SIZE["depth"],
        "num_attention_heads": SIZE["heads"],
        "intermediate_size": FlatTransformerOptions.model_validate(SIZE).feed_forward_width,
        "max_position_embeddings": 4096,
    }
    return HfCausalLM(HfCausalOptions(architecture=architecture), STAGES[stage])


def given(stage: StageSpec, seconds: float, batch: int = 1) -> tuple[Tokens, ...]:
    """Return random given slices of so many seconds."""
    return tuple(_random(part, seconds, batch) for part in stage.given)


def batch_of(stage: StageSpec, seconds: float, batch: int) -> StageBatch:
    """Return random crops to train on."""
    return StageBatch(_random(stage.target, seconds, batch), given(stage, seconds, batch))


def _random(part: SliceSpec, seconds: float, batch: int) -> Tokens:
    frames = round(seconds * part.frame_rate)
    ids = torch.randint(part.codebook_size, (batch, part.num_levels, frames))
    return Tokens.full(ids)


def generate(lm: StageLM, seconds: float, decoding: Decoding | None = None) -> Tokens:
    """Draw so many seconds from nothing but what is given, batch 1."""
    lm.decode_with(decoding or Decoding())
    frames = round(seconds * lm.stage.target.frame_rate)
    prompt = Tokens.empty(1, lm.stage.target.num_levels)
    context = given(lm.stage, seconds)
    return lm.generate(context, prompt, frames, Sampling(), row_generators(0, 1))


def num_tokens(stage: StageSpec, seconds: float) -> int:
    return round(seconds * stage.target.frame_rate) * stage.target.num_levels


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
