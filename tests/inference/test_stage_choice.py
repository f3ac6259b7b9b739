"""Several stages for the same tokens: the fastest for the device and the work runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import melody

from segue.core.assembly import assemble
from segue.core.config import PipelineConfig
from segue.core.config_files import load_config
from segue.core.errors import AssemblyError
from segue.core.plugins import PluginHost
from segue.inference.pipeline import Pipeline

RATE = 16_000
SMALL = {"width": 16, "depth": 1, "heads": 2}


def config(base: PipelineConfig, **changes: Any) -> PipelineConfig:
    """Add a stage that can replace the acoustic one, and the speeds of both."""
    data = base.model_dump(mode="json")
    acoustic = data["stages"][1]
    acoustic["speed"] = {"cpu": {"continue": 5.0, "stream": 2.0}}
    lm = {"use": "masked_transformer.v1", "options": SMALL}
    faster = {"cpu": {"continue": 4.0, "stream": 3.0}, "cuda": {"batch": 1.0}}
    other = acoustic | {"name": "filled", "lm": lm, "instead_of": "acoustic", "speed": faster}
    data["stages"].append(other | changes)
    return PipelineConfig.model_validate(data)


@pytest.fixture(scope="module")
def base(tiny_pipelines: dict[str, Path], host: PluginHost) -> PipelineConfig:
    return load_config(tiny_pipelines["speech"] / "pipeline.yaml", host).config


@pytest.fixture(scope="module")
def host() -> PluginHost:
    return PluginHost.discover(entry_points=False)


def test_the_fastest_for_the_device_and_the_work_runs(base: PipelineConfig) -> None:
    both = config(base)
    cases = {
        ("cpu", "continue"): "acoustic",
        ("cpu", "stream"): "filled",
        ("cpu", "batch"): "acoustic",  # not measured: the one that the other names
        ("cuda", "batch"): "filled",
        ("mps", "stream"): "acoustic",
    }
    for (device, work), wanted in cases.items():
        running = both.running(device, work)  # type: ignore[arg-type]
        assert [stage.name for stage in running] == ["semantic", wanted]


def test_a_request_runs_one_of_them_and_says_which(base: PipelineConfig, host: PluginHost) -> None:
    torch.manual_seed(0)
    pipeline = Pipeline.from_config(config(base), host=host, allow_untrained=True)
    prompt = melody(1.0, seed=3)
    alone = Pipeline.from_config(base, host=host).continue_(prompt, RATE, seconds=0.4, seed=2)
    whole = pipeline.continue_(prompt, RATE, seconds=0.4, seed=2)
    assert list(whole.metadata["sampling"]) == ["semantic", "acoustic"]
    assert torch.equal(whole.wave, alone.wave)
    seen: set[str] = set()
    chunks = pipeline.stream(
        prompt, RATE, seconds=0.4, progress=lambda name, *_: seen.add(name),
        sampling={"filled": {"iterations": (2,)}, "acoustic": {"temperature": 0.5}},
    )  # fmt: skip
    assert list(next(chunks).metadata["sampling"]) == ["semantic", "filled"]
    assert seen == {"semantic", "filled"}


def test_a_saved_pipeline_keeps_both(
    base: PipelineConfig, host: PluginHost, tmp_path: Path
) -> None:
    pipeline = Pipeline.from_config(config(base), host=host, allow_untrained=True)
    kept = Pipeline.from_pretrained(pipeline.save_pretrained(tmp_path / "both"), host=host)
    assert kept.config.stages[2].speed == pipeline.config.stages[2].speed
    assert kept.config.running("cpu", "stream")[1].name == "filled"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"predicts": "acoustic[0:2]"}, r"predicts acoustic\[0:3\] given .*, not acoustic\[0:2\]"),
        ({"given": []}, r"given semantic\[0:1\], not .* given nothing"),
        ({"instead_of": "filled"}, "does not stand before it"),
    ],
)
def test_a_stage_that_cannot_replace_another_is_refused(
    base: PipelineConfig, host: PluginHost, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(AssemblyError, match=rf"stages\.filled\.instead_of: .*{problem}"):
        assemble(config(base, **changes), host)


def test_without_the_other_a_stage_runs_in_its_own_right(
    base: PipelineConfig, host: PluginHost
) -> None:
    alone = config(base)
    alone = alone.model_copy(update={"stages": (alone.stages[0], alone.stages[2])})
    assert [stage.name for stage in alone.running("cpu", "continue")] == ["semantic", "filled"]
    assert assemble(alone, host).streams["acoustic"].num_levels == 3
