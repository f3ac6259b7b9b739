"""GPT-2 and Llama as Hugging Face transformers builds them, in the size of a Segue transformer.

Nothing is downloaded: weights are random, which costs the same time.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, get_args

import torch
from torch import nn

from benchmarks.timing import median_seconds

Kind = Literal["gpt2", "llama"]
Attention = Literal["sdpa", "eager"]
Cache = Literal["dynamic", "static"]
PROMPT = 8  # tokens


@dataclass(frozen=True)
class Setting:
    """An eager way to generate: how attention is computed and how keys and values are kept."""

    attention: Attention
    cache: Cache

    def __str__(self) -> str:
        return f"{self.attention} attention, {self.cache} cache"


SETTINGS = tuple(Setting(*pair) for pair in product(get_args(Attention), get_args(Cache)))


@dataclass(frozen=True)
class Rate:
    """A speed of generation and the setting that reached it."""

    tokens_per_second: float
    setting: Setting


def feed_forward_width(width: int) -> int:
    """Return the width of the SwiGLU: 8/3 of ``width``, rounded up to a multiple of 32."""
    return -(-8 * width // 96) * 32


def build(
    kind: Kind,
    width: int = 512,
    depth: int = 6,
    heads: int = 8,
    vocabulary: int = 1024,
    positions: int = 4096,
) -> nn.Module:
    """Return a decoder in fp32; call ``use_packages("transformers")`` first.

    Args:
        positions: the longest sequence; GPT-2 learns an embedding of each.
    """
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    # Without an end token nothing stops early, and no time is spent on looking for one.
    special = {"bos_token_id": None, "eos_token_id": None}
    if kind == "gpt2":
        gpt2 = GPT2Config(
            vocab_size=vocabulary,
            n_positions=positions,
            n_embd=width,
            n_layer=depth,
            n_head=heads,
            **special,
        )
        return GPT2LMHeadModel(gpt2).float().eval()  # type: ignore[no-any-return]
    llama = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=feed_forward_width(width),
        num_hidden_layers=depth,
        num_attention_heads=heads,
        max_position_embeddings=positions,
        **special,
    )
    return LlamaForCausalLM(llama).float().eval()  # type: ignore[no-any-return]


def generate(model: nn.Module, tokens: int, setting: Setting) -> torch.Tensor:
    """Draw exactly ``tokens`` tokens after a short prompt, batch 1, from the whole distribution."""
    decoder: Any = model
    if decoder.config._attn_implementation != setting.attention:
        decoder.set_attn_implementation(setting.attention)
    prompt = torch.arange(PROMPT)[None]
    drawn: torch.Tensor = decoder.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=True,
        top_k=0,
        use_cache=True,
        cache_implementation=setting.cache,
        disable_compile=True,
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        pad_token_id=0,
    )[:, PROMPT:]
    if drawn.shape[1] != tokens:
        raise RuntimeError(f"asked for {tokens} tokens, got {drawn.shape[1]}")
    return drawn


def generation_rate(
    model: nn.Module, tokens: int, repeats: int = 3, setting: Setting | None = None
) -> Rate:
    """Return the median tokens per second of ``generate``.

    Args:
        setting: None tries every one with as many tokens and takes the fastest.
    """

    def taken(each: Setting, repeats: int) -> float:
        return median_seconds(lambda: generate(model, tokens, each), repeats, warmup=0)

    generate(model, min(tokens, PROMPT), setting or SETTINGS[0])
    if setting is None:
        trials = {each: taken(each, 1) for each in SETTINGS}
        setting = min(trials, key=trials.__getitem__)
    return Rate(tokens / taken(setting, repeats), setting)
