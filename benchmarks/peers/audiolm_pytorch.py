"""The three transformers of audiolm-pytorch 2.4.0, generating and training by its own wrappers.

Weights and tokens are random, which costs the same time. Only what it needs to run offline is
changed: stubs stand in for fairseq and wandb, a codec that holds nothing for the trained one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.timing import median_seconds

Name = Literal["semantic", "coarse", "fine"]
NEVER = -2  # no token has this id, so waiting for it never ends


@dataclass(frozen=True)
class Sizes:
    """Size of the transformers and of what they model; rates are in frames per second."""

    dim: int = 512
    depth: int = 6
    heads: int = 8
    codebook_size: int = 1024
    semantic_codes: int = 1024
    coarse_quantizers: int = 4
    fine_quantizers: int = 8
    semantic_rate: int = 25
    acoustic_rate: int = 50


@dataclass(frozen=True)
class Stage:
    """Hold one of its transformers in its wrapper."""

    name: Name
    wrapper: nn.Module
    sizes: Sizes

    @property
    def parameters(self) -> int:
        """Count all parameters of the transformer, embeddings included."""
        return sum(parameter.numel() for parameter in self.wrapper.parameters())

    def frames(self, seconds: float, limit: int | None = None) -> int:
        """Count the frames that the stage generates for so many seconds, at most ``limit``."""
        semantic = self.name == "semantic"
        rate = self.sizes.semantic_rate if semantic else self.sizes.acoustic_rate
        count = round(seconds * rate)
        return count if limit is None else min(count, limit)

    def tokens(self, seconds: float, max_frames: int | None = None) -> int:
        """Count the tokens that the stage generates for so many seconds."""
        sizes = self.sizes
        levels = {"coarse": sizes.coarse_quantizers, "fine": sizes.fine_quantizers}
        return self.frames(seconds, max_frames) * levels.get(self.name, 1)

    def inputs(self, batch: int, seconds: float) -> dict[str, Tensor]:
        """Draw random tokens of the slices that the stage reads and of the one that it models."""
        sizes = self.sizes
        semantic = (batch, round(seconds * sizes.semantic_rate))
        acoustic = (batch, round(seconds * sizes.acoustic_rate))
        drawn = {}
        if self.name != "fine":
            drawn["semantic_token_ids"] = torch.randint(sizes.semantic_codes, semantic)
        if self.name != "semantic":
            shape = (*acoustic, sizes.coarse_quantizers)
            drawn["coarse_token_ids"] = torch.randint(sizes.codebook_size, shape)
        if self.name == "fine":
            shape = (*acoustic, sizes.fine_quantizers)
            drawn["fine_token_ids"] = torch.randint(sizes.codebook_size, shape)
        return drawn


def load() -> ModuleType:
    """Import the package offline. ``use_packages("audiolm_pytorch")`` must have succeeded."""
    for name in ("fairseq", "wandb"):
        if name not in sys.modules:
            stub = ModuleType(name)
            stub.__spec__ = ModuleSpec(name, None)  # others ask whether it is installed
            sys.modules[name] = stub
    import audiolm_pytorch
    from audiolm_pytorch import t5
    from transformers import T5Config

    # It asks for the width of a text encoder even if there is none, and would download its config.
    t5.T5_CONFIGS[t5.DEFAULT_T5_NAME] = {"config": T5Config()}
    return audiolm_pytorch  # type: ignore[no-any-return]


def _codec(package: Any, quantizers: int) -> nn.Module:
    """A codec that only says how many quantizers it has: all that the wrappers ask of it here.

    Their type checks at run time want a subclass of one of the package's codecs.
    """

    class SilentCodec(package.EncodecWrapper):  # type: ignore[misc]
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.rq_groups = 1
            self.num_quantizers = quantizers

    return SilentCodec()


def build(name: Name, sizes: Sizes | None = None) -> Stage:
    """Return one stage in fp32 and eval mode, with the package's defaults and no text.

    Flash attention is off, as by default: it would drop the relative positions.
    """
    package: Any = load()
    sizes = sizes or Sizes()
    codec = _codec(package, sizes.coarse_quantizers + sizes.fine_quantizers)
    # With cond_dim equal to dim the unused projection of text has no weights.
    common: dict[str, Any] = {
        "dim": sizes.dim,
        "depth": sizes.depth,
        "heads": sizes.heads,
        "cond_dim": sizes.dim,
        "has_condition": False,
        "flash_attn": False,
    }
    if name != "fine":
        common["num_semantic_tokens"] = sizes.semantic_codes
    if name != "semantic":
        common["codebook_size"] = sizes.codebook_size
        common["num_coarse_quantizers"] = sizes.coarse_quantizers
    # `unique_consecutive` would drop repeated semantic tokens, so that there were fewer than asked.
    if name == "semantic":
        transformer = package.SemanticTransformer(**common)
        wrapper = package.SemanticTransformerWrapper(
            transformer=transformer, unique_consecutive=False
        )
        wrapper.eos_id = NEVER
    elif name == "coarse":
        transformer = package.CoarseTransformer(**common)
        wrapper = package.CoarseTransformerWrapper(
            transformer=transformer, codec=codec, unique_consecutive=False
        )
        wrapper.coarse_eos_id = NEVER
    else:
        transformer = package.FineTransformer(num_fine_quantizers=sizes.fine_quantizers, **common)
        wrapper = package.FineTransformerWrapper(transformer=transformer, codec=codec)
        wrapper.eos_id = NEVER
    return Stage(name, wrapper.float().eval(), sizes)


def generate(stage: Stage, seconds: float, max_frames: int | None = None) -> Tensor:
    """Generate with its own cache of keys and values and no prompt, batch 1; return the tokens.

    Args:
        seconds: length of the given slice, in full, and of what is generated.
        max_frames: generate only so many first frames of it. The later ones are slower.
    """
    from audiolm_pytorch import audiolm_pytorch as module

    frames = stage.frames(seconds, max_frames)
    inputs = stage.inputs(1, seconds)
    wrapper: Any = stage.wrapper
    progress = module.tqdm
    # Its loops run over `tqdm(range(...))`, one item per frame: they are shortened there.
    module.tqdm = lambda steps, **_: steps[:frames]
    try:
        if stage.name == "semantic":
            ids = wrapper.generate(max_length=frames)
        elif stage.name == "coarse":
            semantic = inputs["semantic_token_ids"]
            ids = wrapper.generate(semantic_token_ids=semantic, max_time_steps=frames)
        else:
            ids = wrapper.generate(coarse_token_ids=inputs["coarse_token_ids"])
    finally:
        module.tqdm = progress
    asked = stage.tokens(seconds, max_frames)
    if ids.numel() != asked or bool((ids < 0).any()):
        raise RuntimeError(f"{stage.name}: asked for {asked} tokens, got {int((ids >= 0).sum())}")
    return ids  # type: ignore[no-any-return]


def generation_rate(
    stage: Stage, seconds: float, max_frames: int | None = None, repeats: int = 3
) -> float:
    """Return the median tokens per second of ``generate``, after two uncounted frames."""
    generate(stage, seconds, max_frames=2)
    taken = median_seconds(lambda: generate(stage, seconds, max_frames), repeats, warmup=0)
    return stage.tokens(seconds, max_frames) / taken


def training_step(
    stage: Stage, batch: int, seconds: float, wave: Tensor | None = None
) -> Callable[[], float]:
    """Return a training step on random tokens: its wrapper's loss, backward and AdamW.

    Args:
        wave: ``[B, T]`` that the wrapper makes its tokens of anew in each step.

    Call what is returned for one step; it returns the loss.
    """
    inputs = stage.inputs(batch, seconds) if wave is None else {"raw_wave": wave}
    wrapper: Any = stage.wrapper
    optimizer = torch.optim.AdamW(wrapper.transformer.parameters(), lr=1e-4)

    def step() -> float:
        wrapper.train()
        loss = wrapper(**inputs, return_loss=True)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        wrapper.eval()
        return float(loss.detach())

    return step
