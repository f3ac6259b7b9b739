"""Test the example package: assembled into both domains by config, trained, and missing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.conftest import TINY, melody

from segue.core.assembly import assemble
from segue.core.checkpoint import load_component, save_component
from segue.core.config_files import load_config
from segue.core.errors import PluginError
from segue.core.plugins import PluginHost
from segue.inference.pipeline import Pipeline
from segue.training.workspace import Workspace, train_all

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "third_party_plugin"
SWAPS = {
    "semantic_tokenizer.use": "toy_loudness.v1",
    "codec.use": "toy_mdct.v1",
    "stages.semantic.lm.use": "toy_gru.v1",
    "stages.acoustic.lm.use": "toy_gru.v1",
}


@pytest.fixture
def toy(tmp_path: Path, install: Callable[..., None]) -> PluginHost:
    """A host that sees the example package."""
    site = tmp_path / "site"
    shutil.copytree(EXAMPLE / "src" / "segue_toy", site / "segue_toy")
    _describe(site, "segue_toy", "segue_toy.register")
    install(site)
    return PluginHost.discover()


def _describe(site: Path, name: str, module: str) -> None:
    info = site / f"{name}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[segue.plugins]\ntoy = {module}\n")


@pytest.mark.parametrize("domain", ["speech", "piano"])
def test_each_component_enters_each_domain_by_one_line(domain: str, toy: PluginHost) -> None:
    for key, name in SWAPS.items():
        config = load_config(f"{domain}/baseline", toy, [f"{key}={name}"]).config
        parts = assemble(config, toy).parts
        assert parts[key.removesuffix(".use").removesuffix(".lm")].use == name


@pytest.mark.parametrize("domain", ["speech", pytest.param("piano", marks=pytest.mark.slow)])
def test_a_pipeline_of_foreign_parts_trains_and_continues(
    domain: str, toy: PluginHost, tmp_path: Path, recordings_folder: Path
) -> None:
    kept = [text for text in TINY if ".options." not in text]
    overrides = [f"{key}={name}" for key, name in SWAPS.items()]
    config = load_config(f"{domain}/baseline", toy, [*kept, *overrides]).config
    directory = train_all(Workspace(config, tmp_path / "run", recordings_folder, toy))
    pipeline = Pipeline.from_pretrained(directory, host=toy)
    result = pipeline.continue_(melody(1.0, seed=1), 16_000, seconds=0.4)
    assert result.continuation().shape[0] == 0.4 * 16_000
    assert torch.isfinite(result.wave).all()


def test_a_missing_plugin_is_named_with_the_package_to_install(
    toy: PluginHost, tmp_path: Path, tiny_pipelines: dict[str, Path]
) -> None:
    saved = tmp_path / "codec"
    saved.mkdir()
    codec = toy.create("codec", "toy_mdct.v1", {}, place="codec")
    save_component(codec, saved, "codec", "toy_mdct.v1", {})
    text = (saved / "component.json").read_text()
    assert '"distribution": "segue-toy"' in text.replace("_", "-")
    assert '"version": "0.1.0"' in text
    without = PluginHost.discover(entry_points=False)
    used = ["codec.use=toy_mdct.v1", f"codec.checkpoint={saved}"]
    for more in (["codec.options={}"], ["codec.options={num_levels: 6}"]):
        with pytest.raises(PluginError, match=r"segue.toy==0\.1\.0: install that package"):
            config = load_config(tiny_pipelines["speech"], without, [*used, *more]).config
            assemble(config, without)
    with pytest.raises(PluginError, match=r"segue.toy==0\.1\.0"):
        load_component(saved, without, "codec")
