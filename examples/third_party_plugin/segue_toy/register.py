"""What segue-toy offers. Imports no torch."""

from __future__ import annotations

from segue.core.hookspecs import hookimpl
from segue.core.records import PluginRecord


@hookimpl
def segue_register_semantic_tokenizers() -> list[PluginRecord]:
    return [
        PluginRecord(
            kind="semantic_tokenizer",
            name="toy_loudness.v1",
            target="segue_toy.tokenizer:LoudnessTokenizer",
            config="segue_toy.config:LoudnessOptions",
            summary="loudness and zero crossings, quantized",
        )
    ]


@hookimpl
def segue_register_codecs() -> list[PluginRecord]:
    return [
        PluginRecord(
            kind="codec",
            name="toy_dct.v1",
            target="segue_toy.codec:DctCodec",
            config="segue_toy.config:DctOptions",
            summary="the lowest cosine coefficients of each frame, two per level",
        )
    ]


@hookimpl
def segue_register_stage_lms() -> list[PluginRecord]:
    return [
        PluginRecord(
            kind="stage_lm",
            name="toy_gru.v1",
            target="segue_toy.lm:GruLM",
            config="segue_toy.config:GruOptions",
            summary="a recurrent network over frames",
        )
    ]
