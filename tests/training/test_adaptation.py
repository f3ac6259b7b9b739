"""A part of what a component holds is trained: some tensors are frozen, or matrices adapted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from segue.core.checkpoint import save_component
from segue.core.config import TrainingConfig
from segue.core.errors import CheckpointError, TrainingError
from segue.core.interfaces import Component, StageBatch, Tokens, WaveBatch
from segue.core.options import Options
from segue.core.spec import SliceSpec, StageSpec
from segue.data.epochs import WHOLE, Share
from segue.plugins.models.delay_transformer.config import DelayTransformerOptions
from segue.plugins.models.delay_transformer.model import DelayTransformer
from segue.plugins.models.flat_transformer.config import FlatTransformerOptions
from segue.plugins.models.flat_transformer.model import FlatTransformer
from segue.plugins.models.masked_transformer.config import MaskedTransformerOptions
from segue.plugins.models.masked_transformer.model import MaskedTransformer
from segue.training.adaptation import (
    adapt,
    adapters,
    add_adapters,
    load_plain,
    matches,
    plain_state,
    start_from,
)
from segue.training.loop import TrainingRun, train
from segue.training.saving import STATE

STAGE = StageSpec("coarse", SliceSpec("acoustic", 0, 2, 7, Fraction(50), "aaaa"), ())


def stage_lm(seed: int = 0) -> FlatTransformer:
    torch.manual_seed(seed)
    return FlatTransformer(FlatTransformerOptions(width=16, depth=2, heads=2, dropout=0), STAGE)


def batch_of(step: int, share: Share = WHOLE) -> StageBatch:
    generator = torch.Generator().manual_seed(step)
    return StageBatch(Tokens.full(torch.randint(0, 7, (4, 2, 6), generator=generator)))


class Host:
    def __init__(self, stop: int = 0) -> None:
        self.stop = stop

    def call_hook(self, name: str, **arguments: Any) -> None:
        if name == "segue_train_step" and arguments["step"] == self.stop:
            raise KeyboardInterrupt


def config(**changes: Any) -> TrainingConfig:
    values = {"steps": 6, "batch_size": 4, "learning_rate": 0.01, "warmup_steps": 1,
              "save_every": 2, "best": 0}  # fmt: skip
    return TrainingConfig(**(values | changes))


def tuned(
    directory: Path, changes: dict[str, Any], component: Component | None = None, stop: int = 0
) -> Path:
    settings = config(**changes)
    component = component or stage_lm()
    adapt(component, settings, "stages.coarse.lm.training", base=True)
    run = TrainingRun(
        "stages.coarse", "stage_lm", "it.v1", component, settings, directory, batch_of, None,
        Host(stop),
    )  # type: ignore[arg-type] # fmt: skip
    return train(run)


def weights(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "model.safetensors")


# --- freezing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "pattern", "fits"),
    [
        ("blocks.0.attention.weight", "blocks.0.*", True),
        ("body.blocks.0.weight", "blocks.[0-3].*", True),
        ("body.blocks.4.weight", "blocks.[0-3].*", False),
        ("my_blocks.0.weight", "blocks.0.*", False),
        ("norm.bias", "*.bias", True),
        ("norm.bias", "bias", True),
    ],
)
def test_a_pattern_may_begin_at_any_part_of_a_name(name: str, pattern: str, fits: bool) -> None:
    assert matches(name, pattern) == fits


def test_what_is_frozen_stays_and_the_rest_learns(tmp_path: Path) -> None:
    before = stage_lm().state_dict()
    after = weights(tuned(tmp_path, {"freeze": ["blocks.0.*"]}))
    frozen = {name for name in before if "blocks.0." in name}
    assert frozen and len(frozen) < len(before)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not moved & frozen
    assert any("blocks.1." in name for name in moved)


def test_buffers_can_be_frozen_too(tmp_path: Path) -> None:
    class Counting(Component):
        count: Tensor

        def __init__(self) -> None:
            super().__init__(Options())
            torch.manual_seed(0)
            self.line = nn.Linear(2, 2)
            self.register_buffer("count", torch.zeros(()))

        def training_step(self, batch: WaveBatch | StageBatch) -> Mapping[str, Tensor]:
            self.count += 1
            return {"loss": self.line.weight.square().sum()}

    assert weights(tuned(tmp_path / "free", {}, Counting()))["count"] == 6
    kept = weights(tuned(tmp_path / "kept", {"freeze": ["count"]}, Counting()))
    assert kept["count"] == 0


def test_a_pattern_that_fits_nothing_is_refused_with_what_is_near() -> None:
    with pytest.raises(TrainingError) as caught:
        adapt(stage_lm(), config(freeze=["blokcs.0.*"]), "stages.coarse.lm.training", base=True)
    assert caught.value.place == "stages.coarse.lm.training.freeze"
    assert "blokcs.0.*" in caught.value.problem
    assert "blocks.0." in caught.value.fix


def test_freezing_all_is_refused() -> None:
    with pytest.raises(TrainingError, match="leaves nothing to train"):
        adapt(stage_lm(), config(freeze=["*"]), "training", base=True)


# --- adapters ---------------------------------------------------------------------------------


def test_an_adapter_changes_nothing_at_first_and_little_is_trained() -> None:
    plain, component = stage_lm().eval(), stage_lm().eval()
    adapt(component, config(lora={"rank": 2}), "training", base=True)
    batch = batch_of(0)
    with torch.no_grad():
        wanted, got = (c.training_step(batch)["loss"] for c in (plain, component))
    assert torch.equal(wanted, got)
    trainable = [name for name, p in component.named_parameters() if p.requires_grad]
    assert trainable and all(name.endswith((".0.up", ".0.down")) for name in trainable)
    assert len(adapters(component)) * 2 == len(trainable)


def test_layers_of_pytorch_that_read_weights_of_others_see_the_adapters() -> None:
    """In eval mode the whole layer is one fused kernel, and attention never calls ``out_proj``."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    add_adapters(layer, ["linear1", "self_attn.out_proj"], rank=2, alpha=4.0, dropout=0.0)
    x, found = torch.randn(2, 3, 8), {}
    for name, update in adapters(layer).items():
        with torch.no_grad():
            before = layer.eval()(x)
            nn.init.normal_(update.up)
            found[name] = layer(x)
        torch.testing.assert_close(layer.train()(x).detach(), found[name])
        assert not torch.allclose(found[name], before)


def test_a_checkpoint_holds_the_sum_of_weights_and_adapters(tmp_path: Path) -> None:
    component = stage_lm()
    last = tuned(tmp_path, {"lora": {"rank": 2}}, component)
    blank = stage_lm(seed=5)
    assert weights(last).keys() == blank.state_dict().keys()
    blank.load_state_dict(weights(last))
    with torch.no_grad():
        wanted = component.eval().training_step(batch_of(9))["loss"]
        assert torch.allclose(blank.eval().training_step(batch_of(9))["loss"], wanted, atol=1e-6)
    change = weights(last)
    before = stage_lm().state_dict()
    for name in adapters(component):
        difference = change[f"{name}.weight"] - before[f"{name}.weight"]
        assert 0 < torch.linalg.matrix_rank(difference, tol=1e-5) <= 2
    others = set(before) - {f"{name}.weight" for name in adapters(component)}
    assert all(torch.equal(before[name], change[name]) for name in others)


@pytest.mark.parametrize("changes", [{"dropout": 0.3}, {}])
def test_a_run_with_adapters_that_was_stopped_ends_as_if_it_had_not_been(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    tuning = {"lora": {"rank": 2, **changes}, "ema": 0.5}
    whole = tuned(tmp_path / "whole", tuning)
    with pytest.raises(KeyboardInterrupt):
        tuned(tmp_path / "parts", tuning, stop=5)
    last = tuned(tmp_path / "parts", tuning, stage_lm(seed=7))
    for file in ("model.safetensors", STATE):
        assert (last / file).read_bytes() == (whole / file).read_bytes()


def test_other_adapters_than_before_are_refused(tmp_path: Path) -> None:
    tuned(tmp_path, {"lora": {"rank": 2}})
    for changes in ({"lora": {"rank": 3}}, {}, {"lora": {"rank": 2}, "freeze": ["norm.*"]}):
        with pytest.raises(CheckpointError, match=r"was trained with (lora|freeze)") as caught:
            tuned(tmp_path, {**changes, "steps": 8})
        assert "another output directory" in caught.value.fix


def test_targets_and_tensors_beside_the_adapters_can_be_chosen() -> None:
    component = stage_lm()
    lora = {"rank": 2, "targets": ["blocks.1.*"], "also_train": ["norm.*"]}
    adapt(component, config(lora=lora), "training", base=True)
    assert adapters(component) and all(".1." in name for name in adapters(component))
    also = [n for n, p in component.named_parameters() if p.requires_grad and "norm" in n]
    assert also


@pytest.mark.parametrize(
    ("lora", "base", "problem"),
    [
        ({"targets": ["nothing.*"]}, True, "fits no layer"),
        ({"also_train": ["nothing.*"]}, True, "fits no tensor"),
        ({"rank": 64}, True, "leave no layer to adapt at rank 64"),
        ({}, False, "would adapt random weights"),
    ],
)
def test_adapters_that_make_no_sense_are_refused(
    lora: dict[str, Any], base: bool, problem: str
) -> None:
    with pytest.raises(TrainingError, match=problem) as caught:
        adapt(stage_lm(), config(lora=lora), "training", base=base)
    assert caught.value.place.startswith("training.lora") and caught.value.fix


def test_plain_weights_and_adapters_turn_into_each_other(tmp_path: Path) -> None:
    component = stage_lm()
    adapt(component, config(lora={"rank": 2}), "training", base=True)
    for update in adapters(component).values():
        nn.init.normal_(update.up)
    plain = plain_state(component, component.state_dict())
    save_component(component, tmp_path, "stage_lm", "it.v1", {}, state=plain)
    assert all(torch.equal(plain[name], value) for name, value in weights(tmp_path).items())
    assert json.loads((tmp_path / "component.json").read_text())["kind"] == "stage_lm"
    load_plain(component, plain)
    again = plain_state(component, component.state_dict())
    assert all(torch.allclose(plain[name], again[name]) for name in plain)
    assert all(not update.up.any() for update in adapters(component).values())


# --- starting from another component ----------------------------------------------------------


def saved(component: Component, directory: Path) -> Path:
    directory.mkdir()
    save_component(component, directory, "stage_lm", "it.v1", {})
    return directory


def test_tensors_of_the_same_name_and_shape_are_taken(tmp_path: Path) -> None:
    """What filled from left to right becomes what fills masks: all of its weights fit."""
    options = {"width": 16, "depth": 2, "heads": 2}
    torch.manual_seed(1)
    causal = DelayTransformer(DelayTransformerOptions(**options), STAGE)
    masked = MaskedTransformer(MaskedTransformerOptions(blocks="transformer", **options), STAGE)
    assert not start_from(masked, saved(causal, tmp_path / "causal"), "training.start_from")
    theirs = causal.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in masked.state_dict().items())
    # With other codes their table and their heads stay random: adapters alone would not do.
    other = StageSpec("acoustic", replace(STAGE.target, codebook_size=3), STAGE.given)
    wider = DelayTransformer(DelayTransformerOptions(**options), other)
    left = start_from(wider, tmp_path / "causal", "training.start_from")
    assert left == ["embedding.table.weight", "heads.weight"]
    # Of a conformer it is the attention that fits, and some of the rest.
    conformer = MaskedTransformer(MaskedTransformerOptions(**options), STAGE)
    place = "stages.acoustic.lm.training.start_from"
    with pytest.raises(TrainingError, match=rf"{place}.*of the weights"):
        start_from(conformer, tmp_path / "causal", place)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        start_from(masked, tmp_path, place)
