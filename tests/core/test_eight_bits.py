"""Weights in eight bits: what is stored, and how near it is."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from segue.core.checkpoint import load_state, save_component
from segue.core.eight_bits import CODES, SCALES, pack, unpack
from segue.core.errors import CheckpointError
from segue.core.spec import SliceSpec, StageSpec
from segue.plugins.models.flat_transformer.config import FlatTransformerOptions
from segue.plugins.models.flat_transformer.model import FlatTransformer

STAGE = StageSpec("coarse", SliceSpec("acoustic", 0, 2, 7, Fraction(50), "aaaa"), ())


def stage_lm(seed: int) -> FlatTransformer:
    torch.manual_seed(seed)
    return FlatTransformer(FlatTransformerOptions(width=16, depth=1, heads=2), STAGE)


def test_each_weight_comes_back_within_half_a_step_of_its_group() -> None:
    torch.manual_seed(0)
    state = {"a": torch.randn(5, 130), "b": torch.randn(3, 4, 40), "v": torch.randn(9),
             "n": torch.arange(4)}  # fmt: skip
    packed = pack(state)
    assert set(packed) == {f"{k}{e}" for k in "ab" for e in (CODES, SCALES)} | {"v", "n"}
    assert packed[f"a{CODES}"].dtype == torch.int8 and packed["v"].dtype == torch.float16
    assert packed[f"a{SCALES}"].shape == (5, 3)
    back = unpack(packed)
    for name in "ab":
        assert back[name].shape == state[name].shape
        step = state[name].abs().amax() / 127
        assert (back[name] - state[name]).abs().max() <= 0.5001 * step
    assert torch.equal(back["n"], state["n"])
    # What is in eight bits already stays as it is.
    again = unpack(pack(back))
    assert all(torch.allclose(back[name], again[name], rtol=1e-6) for name in state)


def test_what_is_not_packed_is_left_alone() -> None:
    state = {"a": torch.randn(2, 3)}
    assert unpack(state)["a"] is state["a"]


@pytest.mark.parametrize("harm", ["missing", "shape"])
def test_codes_without_their_scales_are_refused(tmp_path: Path, harm: str) -> None:
    save_component(stage_lm(0), tmp_path, "stage_lm", "it.v1", {}, dtype=torch.int8)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    name = next(key for key in tensors if key.endswith(SCALES))
    scales = tensors.pop(name)
    if harm == "shape":
        tensors[name] = torch.cat([scales, scales])
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="codes without scales"):
        load_state(stage_lm(1), tmp_path, "it.v1")


def test_a_stage_is_saved_in_eight_bits(tmp_path: Path) -> None:
    saved = stage_lm(0)
    for name, dtype in (("full", None), ("small", torch.int8)):
        (tmp_path / name).mkdir()
        save_component(saved, tmp_path / name, "stage_lm", "it.v1", {}, dtype=dtype)
    sizes = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("full", "small")]
    assert sizes[1] < 0.6 * sizes[0]
    loaded = stage_lm(1)
    load_state(loaded, tmp_path / "small", "it.v1")
    for key, value in loaded.state_dict().items():
        original = saved.state_dict()[key]
        assert value.dtype == original.dtype
        assert (value - original).abs().max() <= original.abs().max() / 127
