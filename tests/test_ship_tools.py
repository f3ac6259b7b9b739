"""Tools that make weights ready to be shipped."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from segue import Pipeline
from segue.core.checkpoint import load_component, save_component
from segue.core.checkpoint_files import read_manifest
from segue.core.config_files import load_config
from segue.core.eight_bits import CODES
from segue.core.errors import TrainingError
from segue.core.plugins import PluginHost
from segue.training.workspace import Workspace, train_part

TOOLS = Path(__file__).resolve().parent.parent / "tools"
USE = "whisper_kmeans.v1"
OPTIONS = {"width": 64, "depth": 1, "heads": 2, "num_clusters": 8}


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Import a tool as the interpreter does that runs it."""
    monkeypatch.syspath_prepend(str(TOOLS))

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """Weights of an encoder whose clusters are still to be fitted."""
    torch.manual_seed(0)
    host = PluginHost.discover(entry_points=False)
    made = host.create("semantic_tokenizer", USE, OPTIONS, place="test")
    (tmp_path / "encoder").mkdir()
    save_component(made, tmp_path / "encoder", "semantic_tokenizer", USE, {})
    return tmp_path / "encoder"


def workspace(directory: Path, data: Path, *overrides: str) -> Workspace:
    host = PluginHost.discover(entry_points=False)
    part = [f"semantic_tokenizer.use={USE}", f"semantic_tokenizer.options={OPTIONS}"]
    config = load_config("speech/baseline", host, [*part, *overrides]).config
    return Workspace(config, directory, data, host)


def test_clusters_are_fitted_on_a_given_encoder_and_rounded(
    tool, encoder: Path, recordings_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TrainingError, match=r"start_from: is not set"):
        train_part(workspace(tmp_path / "a", recordings_folder), "semantic_tokenizer")
    start = f"semantic_tokenizer.training.start_from={encoder}"
    fitted = train_part(workspace(tmp_path / "b", recordings_folder, start), "semantic_tokenizer")
    given, kept = (load_file(d / "model.safetensors") for d in (encoder, fitted))
    assert all(torch.equal(given[key], kept[key]) for key in given if key.startswith("encoder."))
    assert bool(kept["fitted"]) and bool(kept["centroids"].any())

    rounding = tool("round_tokenizer")
    rounding.main(str(fitted), str(tmp_path / "small"), str(recordings_folder))
    printed = capsys.readouterr().out
    assert float(printed.split(", ")[1].partition("%")[0]) > 90
    stored = load_file(tmp_path / "small" / "model.safetensors")
    assert stored[f"encoder.blocks.0.feed.0.weight{CODES}"].dtype == torch.int8
    assert {stored["centroids"].dtype, stored["encoder.conv1.bias"].dtype} == {torch.float32}
    host = PluginHost.discover(entry_points=False)
    one, other = (load_component(d, host, "test") for d in (fitted, tmp_path / "small"))
    assert one.spec.fingerprint != other.spec.fingerprint  # type: ignore[attr-defined]
    for key, value in one.named_parameters():
        step = value.abs().max() / 127
        assert (other.state_dict()[key] - value).abs().max() <= 10 * step, key


def test_a_codec_keeps_its_tokens_when_its_decoder_is_rounded(
    tool, tiny_pipelines: dict[str, Path], recordings_folder: Path, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    codec = tiny_pipelines["speech"] / "codec"
    tool("round_tokenizer").main(str(codec), str(tmp_path / "small"), str(recordings_folder))
    stored = load_file(tmp_path / "small" / "model.safetensors")
    coded = [name for name in stored if name.endswith(CODES)]
    assert coded and all("decoder" in name for name in coded)
    host, wave = PluginHost.discover(entry_points=False), 0.1 * torch.randn(1, 3200)
    one, other = (load_component(d, host, "test") for d in (codec, tmp_path / "small"))
    assert one.spec == other.spec  # type: ignore[attr-defined]
    tokens = [each.encode(wave, torch.tensor([3200])) for each in (one, other)]  # type: ignore[attr-defined]
    assert torch.equal(tokens[0].ids, tokens[1].ids)
    before, after = (each.decode(tokens[0].ids, tokens[0].lengths) for each in (one, other))  # type: ignore[attr-defined]
    change = (after - before).square().mean() / before.square().mean()
    assert 0 < change < 1e-2


def test_rounding_errors_are_made_up_for(tool) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    weight, mixed = torch.randn(32, 128), torch.randn(128, 16) @ torch.randn(16, 128)
    given = torch.randn(400, 128) @ (0.1 * torch.eye(128) + mixed)  # columns that go together
    rounded = tool("round_tokenizer").rounded
    products = given.double().T @ given.double()
    plain, made = (rounded(weight, p) for p in (torch.eye(128), products))

    def error(matrix: torch.Tensor) -> float:
        return float((given @ (matrix - weight).T).square().mean())

    assert error(made) < 0.2 * error(plain)


def test_a_stage_is_put_into_a_pipeline(
    tool, tiny_pipelines: dict[str, Path], tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    shipped, piano = tmp_path / "shipped", tiny_pipelines["piano"]
    shutil.copytree(tiny_pipelines["speech"], shipped)
    ship = tool("ship_stage")

    def place(source: Path, stage: str) -> None:
        asked = {"tokens": None, "data": None}
        ship.main(argparse.Namespace(checkpoint=source, pipeline=shipped, stage=stage, **asked))

    before = Pipeline.from_pretrained(shipped).generate(0.4, seed=1).row()
    place(tiny_pipelines["speech"] / "stages" / "acoustic", "acoustic")
    weights = load_file(shipped / "stages" / "acoustic" / "model.safetensors")
    assert any(name.endswith(CODES) for name in weights)
    after = Pipeline.from_pretrained(shipped)
    assert after.generate(0.4, seed=1).row().shape == before.shape
    steps = read_manifest(shipped / "stages" / "acoustic").trained["steps"]
    assert after.config.stage("acoustic").lm.training.steps == steps  # type: ignore[union-attr]
    with pytest.raises(SystemExit, match="give --tokens and --data"):
        place(piano / "stages" / "semantic", "semantic")
    with pytest.raises(SystemExit, match="is not a stage called semantic"):
        place(piano / "stages" / "acoustic", "semantic")
