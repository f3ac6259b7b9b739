"""Assembly proves that parts fit before weights load; each refusal names both parts and the fix."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path

import pytest

from segue.core.assembly import assemble
from segue.core.checkpoint_files import read_manifest
from segue.core.config import PipelineConfig
from segue.core.config_files import find_domain, load_config
from segue.core.errors import AssemblyError, CheckpointError
from segue.core.plugins import PluginHost
from segue.core.spec import TokenSpec
from segue.inference.pipeline import Pipeline
from segue.plugins.tokenizers.mel_kmeans.config import MelKMeansOptions
from segue.plugins.tokenizers.spectral_codec.config import SpectralCodecOptions


@pytest.fixture(scope="module")
def host() -> PluginHost:
    return PluginHost.discover(entry_points=False)


def config(
    host: PluginHost, *overrides: str, source: str | Path = "speech/baseline"
) -> PipelineConfig:
    return load_config(source, host, overrides).config


def refusal(host: PluginHost, *overrides: str, source: str | Path = "speech/baseline") -> str:
    with pytest.raises(AssemblyError) as caught:
        assemble(config(host, *overrides, source=source), host)
    assert caught.value.fix
    return str(caught.value)


def staged(host: PluginHost, *stages: dict[str, object], **more: object) -> PipelineConfig:
    """The speech config with other stages."""
    base = config(host).model_dump(mode="json")
    lm = base["stages"][0]["lm"]
    base["stages"] = [{"lm": lm, **stage} for stage in stages]
    return PipelineConfig.model_validate(base | more)


SEMANTIC = {"name": "semantic", "predicts": "semantic"}


def test_streams_and_stages_are_bound_to_their_tokenizers(host: PluginHost) -> None:
    assembly = assemble(config(host), host)
    semantic, acoustic = assembly.stages
    spec = assembly.streams["acoustic"]
    assert (acoustic.target.start, acoustic.target.stop) == (0, spec.num_levels)
    assert acoustic.target.frame_rate == Fraction(50)
    assert acoustic.frames_per_target_frame(0) == Fraction(1, 2)
    assert semantic.given == ()


def test_papers_systems_are_configs(host: PluginHost) -> None:
    three_stage = staged(
        host,
        SEMANTIC,
        {"name": "coarse", "predicts": "acoustic[0:2]", "given": ["semantic"]},
        {"name": "fine", "predicts": "acoustic[2:12]", "given": ["acoustic[0:2]"]},
    )
    assert [stage.name for stage in assemble(three_stage, host).stages] == [
        "semantic",
        "coarse",
        "fine",
    ]
    acoustic_only = staged(
        host, {"name": "acoustic", "predicts": "acoustic"}, semantic_tokenizer=None
    )
    assert set(assemble(acoustic_only, host).streams) == {"acoustic"}


def test_a_codec_s_last_levels_may_be_left_out(host: PluginHost) -> None:
    coarse = {"name": "coarse", "predicts": "acoustic[0:4]", "given": ["semantic"]}
    acoustic = assemble(staged(host, SEMANTIC, coarse), host).streams["acoustic"]
    assert (acoustic.num_levels, acoustic.codebook_size) == (4, 1024)


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        (
            [SEMANTIC, {"name": "a", "predicts": "acoustic[2:4]", "given": ["semantic"]}],
            ["no stage predicts level 0", "codec", "acoustic[0:2]"],
        ),
        (
            [{"name": "a", "predicts": "acoustic"}],
            ["no stage predicts level 0 of the 1 semantic", "semantic[0:1]"],
        ),
        (
            [
                SEMANTIC,
                {"name": "a", "predicts": "acoustic[0:4]", "given": ["semantic"]},
                {"name": "b", "predicts": "acoustic[3:12]", "given": ["semantic"]},
            ],
            ["stages.b", "level 3", "stage a already"],
        ),
        (
            [{"name": "a", "predicts": "acoustic", "given": ["semantic"]}, SEMANTIC],
            ["stages.a.given", "no earlier stage predicts", "before a"],
        ),
        (
            [
                SEMANTIC,
                {"name": "b", "predicts": "acoustic[4:12]", "given": ["acoustic[0:4]"]},
                {"name": "a", "predicts": "acoustic[0:4]", "given": ["semantic"]},
            ],
            ["stages.b.given", "no earlier stage predicts", "before b"],
        ),
        (
            [SEMANTIC, {"name": "a", "predicts": "acoustic[0:15]"}],
            ["stages.a.predicts", "level 15", "codec emits 12", "write acoustic[0:12]"],
        ),
        ([SEMANTIC, {"name": "a", "predicts": "semantic"}], ["predicted by stage semantic"]),
        (
            [{"name": "a", "predicts": "acoustic[2:4]", "given": ["semantic"]}],
            ["no stage predicts level 0", "codec", "acoustic[0:2]"],
        ),
    ],
)
def test_streams_that_do_not_chain_are_refused(
    stages: list[dict[str, object]], words: list[str], host: PluginHost
) -> None:
    with pytest.raises(AssemblyError) as caught:
        assemble(staged(host, *stages), host)
    for word in words:
        assert word in str(caught.value)


def test_a_stage_that_needs_an_absent_tokenizer_is_refused(host: PluginHost) -> None:
    stages = [{"name": "a", "predicts": "acoustic", "given": ["semantic"]}]
    with pytest.raises(AssemblyError, match="has no semantic_tokenizer"):
        assemble(staged(host, *stages, semantic_tokenizer=None), host)


def test_frame_rates_without_a_whole_ratio_are_refused(host: PluginHost) -> None:
    text = refusal(host, "semantic_tokenizer.options.frame_rate=20")
    assert "codec emits 50 frames/s" in text
    assert "semantic_tokenizer 20" in text
    assert "no whole ratio" in text


def test_a_frame_rate_that_does_not_divide_the_sample_rate_is_refused(
    host: PluginHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = TokenSpec(16_000, Fraction(30), 1, 512)
    monkeypatch.setattr(MelKMeansOptions, "spec", lambda self: spec)
    text = refusal(host)
    assert "semantic_tokenizer" in text
    assert "30 frames/s do not divide its 16000 samples/s" in text


def test_semantic_tokens_may_have_several_levels(
    host: PluginHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = TokenSpec(16_000, Fraction(25), 2, 512)
    monkeypatch.setattr(MelKMeansOptions, "spec", lambda self: spec)
    stages = assemble(config(host), host).stages
    assert stages[0].target.num_levels == stages[1].given[0].num_levels == 2


def test_a_trained_pipeline_assembles_and_its_weights_fit(
    tiny_pipelines: dict[str, Path], host: PluginHost
) -> None:
    for directory in tiny_pipelines.values():
        pipeline = Pipeline.from_pretrained(directory, host=host)
        assert all(part.checkpoint for part in pipeline.assembly.parts.values())


def test_a_stage_refuses_tokens_of_another_codec(
    tiny_pipelines: dict[str, Path], host: PluginHost, tmp_path: Path
) -> None:
    speech, piano = tiny_pipelines["speech"], tiny_pipelines["piano"]
    mixed = tmp_path / "mixed"
    shutil.copytree(speech, mixed)
    shutil.rmtree(mixed / "codec")
    shutil.copytree(piano / "codec", mixed / "codec")
    text = refusal(host, source=mixed)
    for directory in (speech, piano):
        recorded = json.loads((directory / "codec" / "component.json").read_text())
        assert recorded["spec"]["fingerprint"] in text
    assert "stages.acoustic" in text
    assert "codec" in text


def test_a_stage_refuses_another_vocabulary(
    tiny_pipelines: dict[str, Path], host: PluginHost
) -> None:
    text = refusal(
        host,
        "semantic_tokenizer.checkpoint=null",
        "semantic_tokenizer.options.num_clusters=99",
        source=tiny_pipelines["speech"],
    )
    assert "stages.semantic" in text
    assert "16 codes per level" in text
    assert "semantic_tokenizer has 99" in text


def test_options_that_contradict_the_checkpoint_are_refused(
    tiny_pipelines: dict[str, Path], host: PluginHost
) -> None:
    text = refusal(host, "codec.options.width=32", source=tiny_pipelines["speech"])
    assert "codec.options.width" in text
    assert "32" in text
    assert "trained with 16" in text


def test_a_codec_can_be_trained_further_in_another_way(host: PluginHost) -> None:
    """What only says how it is trained may differ from the checkpoint's; its tokens may not."""
    source = find_domain("speech", host).pretrained
    assert source is not None
    shipped = read_manifest(source / "codec").options
    assert shipped["loss"]["mel"] != 7.0 and shipped["quantizer_dropout"] != 0.125
    further = ("codec.options={loss: {mel: 7.0}, quantizer_dropout: 0.125}",)
    part = assemble(config(host, *further, source=source / "textless.yaml"), host).parts["codec"]
    assert isinstance(part.options, SpectralCodecOptions)
    assert part.options.loss.mel == 7.0 and part.options.quantizer_dropout == 0.125
    # What is not said is the checkpoint's.
    changed = {**shipped, "loss": {**shipped["loss"], "mel": 7.0}, "quantizer_dropout": 0.125}
    assert part.options.model_dump(mode="json") == changed


def test_a_checkpoint_of_another_plugin_is_refused(
    tiny_pipelines: dict[str, Path], host: PluginHost
) -> None:
    directory = tiny_pipelines["speech"] / "semantic_tokenizer"
    text = refusal(
        host,
        "semantic_tokenizer.use=chroma_kmeans.v1",
        f"semantic_tokenizer.checkpoint={directory}",
        source=tiny_pipelines["speech"],
    )
    assert "chroma_kmeans.v1" in text
    assert "mel_kmeans.v1" in text


def test_a_stage_with_another_slice_than_it_was_trained_on_is_refused(
    tiny_pipelines: dict[str, Path], host: PluginHost
) -> None:
    text = refusal(host, "stages.acoustic.given=[]", source=tiny_pipelines["speech"])
    assert "given nothing" in text
    assert "semantic[0:1]" in text


def test_refusal_comes_before_any_weight_is_read(
    tiny_pipelines: dict[str, Path], host: PluginHost, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_pipelines["speech"], broken)
    for weights in broken.rglob("model.safetensors"):
        weights.unlink()
    with pytest.raises(AssemblyError, match="given nothing"):
        Pipeline.from_pretrained(broken, overrides=["stages.acoustic.given=[]"], host=host)
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        Pipeline.from_pretrained(broken, host=host)


def test_untrained_parts_are_never_run_unasked(host: PluginHost) -> None:
    with pytest.raises(AssemblyError, match="must be trained"):
        Pipeline.from_config(config(host), host=host)
    assert Pipeline.from_config(config(host), host=host, allow_untrained=True)


STAGE_LMS = ("flat_transformer.v1", "delay_transformer.v1")
TOKENIZERS = ("mel_kmeans.v1", "chroma_kmeans.v1")


@pytest.mark.parametrize(
    ("domain", "tokenizer", "semantic", "acoustic"),
    [
        ("speech", *TOKENIZERS[:1], *STAGE_LMS),
        ("speech", *TOKENIZERS[1:], *STAGE_LMS[::-1]),
        ("piano", *TOKENIZERS[:1], *STAGE_LMS[:1] * 2),
        ("piano", *TOKENIZERS[1:], *STAGE_LMS[1:] * 2),
    ],
)
def test_combinations_of_parts_generates(
    domain: str, tokenizer: str, semantic: str, acoustic: str, host: PluginHost
) -> None:
    small = "options={width: 16, depth: 1, heads: 2}"
    swapped = config(
        host,
        f"semantic_tokenizer.use={tokenizer}",
        f"stages.semantic.lm.use={semantic}",
        f"stages.acoustic.lm.use={acoustic}",
        f"stages.semantic.lm.{small}",
        f"stages.acoustic.lm.{small}",
        "codec.options={width: 16, encoder_depth: 1, decoder_depth: 1, num_levels: 2}",
        source=f"{domain}/baseline",
    )
    pipeline = Pipeline.from_config(swapped, host=host, allow_untrained=True)
    audio = pipeline.generate(0.2, batch=2)
    assert audio.lengths.tolist() == [3200, 3200]
    assert bool(audio.wave.isfinite().all())


def test_a_file_that_extends_another_can_take_a_stage_out(host: PluginHost, tmp_path: Path) -> None:
    path = tmp_path / "cascade.yaml"
    path.write_text(
        "extends: speech/baseline\n"
        "stages:\n"
        "  - {name: acoustic, drop: true}\n"
        "  - {name: coarse, predicts: 'acoustic[0:2]', given: [semantic],\n"
        "     lm: {use: flat_transformer.v1}}\n"
        "  - {name: fine, predicts: 'acoustic[2:12]', given: ['acoustic[0:2]'],\n"
        "     lm: {use: flat_transformer.v1}}\n"
    )
    stages = assemble(config(host, source=path), host).stages
    assert [stage.name for stage in stages] == ["semantic", "coarse", "fine"]
