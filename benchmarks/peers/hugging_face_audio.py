"""Audio decoders and codecs of Hugging Face transformers, in the size of Segue's; random weights.

MusicGen's decoder has the delay pattern, CSM's a transformer over the levels of a frame. Nothing is
downloaded. ``use_packages("transformers")`` must have succeeded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import stages
from benchmarks.peers.hugging_face import feed_forward_width

LEVELS = stages.COARSE + stages.FINE


def musicgen() -> Callable[[int], Tensor]:
    """Return a function that draws so many frames; its prompt is one start token per level."""
    from transformers import MusicgenDecoderConfig, MusicgenForCausalLM

    width, depth, heads = stages.SIZE["width"], stages.SIZE["depth"], stages.SIZE["heads"]
    config = MusicgenDecoderConfig(
        vocab_size=stages.CODES, num_hidden_layers=depth, num_attention_heads=heads,
        hidden_size=width, ffn_dim=4 * width, num_codebooks=LEVELS, pad_token_id=stages.CODES,
        bos_token_id=stages.CODES,
    )  # fmt: skip
    model: Any = MusicgenForCausalLM(config).eval()
    model.generation_config.decoder_start_token_id = stages.CODES

    def draw(frames: int) -> Tensor:
        start = torch.full((LEVELS, 1), stages.CODES)
        drawn: Tensor = model.generate(
            input_ids=start,
            max_new_tokens=frames + LEVELS,
            do_sample=True,
            top_k=0,
            guidance_scale=None,
            num_return_sequences=1,
            pad_token_id=stages.CODES,
            bos_token_id=stages.CODES,
        )
        return drawn

    return draw


def csm() -> Callable[[int], Tensor]:
    """Return a function that draws so many frames, its depth decoder half as wide."""
    from transformers import CsmConfig, CsmForConditionalGeneration

    width, depth, heads = stages.SIZE["width"], stages.SIZE["depth"], stages.SIZE["heads"]

    def layers(width: int, depth: int, heads: int) -> dict[str, int]:
        return {
            "hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads,
            "num_key_value_heads": heads, "head_dim": width // heads,
            "intermediate_size": feed_forward_width(width), "vocab_size": stages.CODES,
            "num_codebooks": LEVELS,
        }  # fmt: skip

    levels = layers(width // 2, 3, heads // 2) | {
        "backbone_hidden_size": width,
        "max_position_embeddings": LEVELS + 1,
    }
    # No code ends the audio: its number lies outside the codebook.
    config = CsmConfig(
        **layers(width, depth, heads), text_vocab_size=stages.SEMANTIC_CODES,
        depth_decoder_config=levels, codebook_eos_token_id=-1,
    )  # fmt: skip
    model: Any = CsmForConditionalGeneration(config).eval()

    def draw(frames: int) -> Tensor:
        drawn: Tensor = model.generate(
            input_ids=torch.arange(4)[None], max_new_tokens=frames, do_sample=True, top_k=0,
            depth_decoder_do_sample=True,
        )  # fmt: skip
        return drawn

    return draw


def codecs() -> dict[str, tuple[int, Callable[[Tensor], object]]]:
    """Return, by name, the sample rate and a call that encodes and decodes ``[1, 1, T]``."""
    from transformers import (
        DacConfig,
        DacModel,
        EncodecConfig,
        EncodecModel,
        MimiConfig,
        MimiModel,
    )

    found: dict[str, tuple[int, Callable[[Tensor], object]]] = {}
    pairs: tuple[tuple[str, Any, Any], ...] = (
        ("encodec", EncodecConfig(), EncodecModel),
        ("dac", DacConfig(sampling_rate=16_000), DacModel),
        ("mimi", MimiConfig(), MimiModel),
    )
    for name, config, kind in pairs:
        model = kind(config).eval()

        def call(wave: Tensor, model: Any = model) -> object:
            return model(wave)

        found[name] = config.sampling_rate, call
    return found
