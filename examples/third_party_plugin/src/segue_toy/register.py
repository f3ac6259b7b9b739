"""Name everything that this package offers, as strings. Imports no torch."""

from __future__ import annotations

from segue.core.hookspecs import hookimpl
from segue.core.records import PluginRecord


@hookimpl
def segue_register() -> list[PluginRecord]:
    return [
        PluginRecord(
            kind="semantic_tokenizer",
            name="toy_loudness.v1",
            target="segue_toy.semantic:LoudnessTokenizer",
            config="segue_toy.semantic_config:LoudnessOptions",
            summary="loudness and zero crossings of each frame",
            api_version=1,
        ),
        PluginRecord(
            kind="codec",
            name="toy_mdct.v1",
            target="segue_toy.codec:MdctCodec",
            config="segue_toy.codec_config:MdctOptions",
            summary="the strongest MDCT coefficients of each frame",
            api_version=1,
        ),
        PluginRecord(
            kind="stage_lm",
            name="toy_gru.v1",
            target="segue_toy.stage_lm:GruStageLM",
            config="segue_toy.stage_lm_config:GruOptions",
            summary="recurrent network over frames and over the levels of a frame",
            api_version=1,
        ),
    ]
