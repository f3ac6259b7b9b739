"""Every family of stage models takes part in a pipeline by one line of config."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from tests.conftest import melody

from segue import Pipeline
from segue.core.config_files import load_config
from segue.core.plugins import PluginHost
from segue.data.token_crops import TokenCrops
from segue.data.token_store import TokenStore
from segue.training.workspace import Workspace, train_part

RATE = 16_000
SMALL = "{width: 16, depth: 1, heads: 2}"
LLAMA = (
    "{architecture: {model_type: llama, hidden_size: 16, intermediate_size: 24, "
    "num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 1}}"
)
FAMILIES = {
    "flat_transformer.v1": SMALL,
    "delay_transformer.v1": "{width: 16, depth: 1, heads: 2, pattern: parallel}",
    "depth_transformer.v1": SMALL,
    "masked_transformer.v1": SMALL,
    "hf_causal.v1": LLAMA,
}


def overrides(stage: str, use: str) -> list[str]:
    # Options first: where `use` changes, those of the old plugin are dropped.
    lm = f"stages.{stage}.lm"
    return [f"{lm}.use={use}", f"{lm}.checkpoint=null", f"{lm}.options={FAMILIES[use]}"]


@pytest.fixture(params=FAMILIES)
def use(request: pytest.FixtureRequest) -> str:
    if request.param == "hf_causal.v1" and importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    return str(request.param)


@pytest.mark.parametrize("stage", [pytest.param("semantic", marks=pytest.mark.slow), "acoustic"])
def test_a_swapped_stage_continues_streams_and_is_saved(
    tiny_pipelines: dict[str, Path], plugin_host: PluginHost, tmp_path: Path, use: str, stage: str
) -> None:
    source = tiny_pipelines["speech"] / "pipeline.yaml"
    config = load_config(source, plugin_host, overrides(stage, use)).config
    torch.manual_seed(0)
    pipeline = Pipeline.from_config(config, host=plugin_host, allow_untrained=True)
    prompts = [(melody(seconds, seed=5), RATE) for seconds in (1.0, 1.6)]
    result = pipeline.continue_batch(prompts, seconds=1.6, seed=3, chunk_seconds=0.8)
    assert [row.shape[0] for row in map(result.continuation, (0, 1))] == [round(1.6 * RATE)] * 2
    chunks = pipeline.stream(*prompts[0], seconds=1.6, seed=3, chunk_seconds=0.8)
    streamed = torch.cat([chunk.row() for chunk in chunks])
    torch.testing.assert_close(streamed, result.continuation(0), atol=1e-4, rtol=1e-4)
    loaded = Pipeline.from_pretrained(pipeline.save_pretrained(tmp_path / "saved"))
    again = loaded.continue_batch(prompts, seconds=1.6, seed=3, chunk_seconds=0.8)
    assert torch.equal(again.tokens["acoustic"].ids, result.tokens["acoustic"].ids)


def test_a_swapped_stage_is_trained_and_resumed_by_the_same_command(
    tiny_pipelines: dict[str, Path], plugin_host: PluginHost, tmp_path: Path, use: str
) -> None:
    source = tiny_pipelines["speech"] / "pipeline.yaml"
    tokens = tiny_pipelines["speech"].parent / "tokens"
    (tmp_path / "tokens").symlink_to(tokens)

    def trained(steps: int) -> Path:
        changes = [*overrides("acoustic", use), f"stages.acoustic.lm.training.steps={steps}"]
        config = load_config(source, plugin_host, changes).config
        workspace = Workspace(config, tmp_path, None, plugin_host)
        return train_part(workspace, "stages.acoustic")

    first = trained(1)
    second = trained(3)
    assert (first.name, second.name) == ("step-00000001", "step-00000003")
    changes = [*overrides("acoustic", use), f"stages.acoustic.lm.checkpoint={second}"]
    config = load_config(source, plugin_host, changes).config
    pipeline = Pipeline.from_config(config, host=plugin_host)
    stage = pipeline.stage_lm("acoustic")
    batch = TokenCrops(TokenStore(tokens, "train"), stage.stage, 1.0, 2, 0).batch(0)
    assert torch.isfinite(stage.loss(batch).total)
