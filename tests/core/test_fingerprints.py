"""Fingerprints follow what decides tokens, and older ones stay valid."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from segue.core.checkpoint import load_state, save_component
from segue.core.checkpoint_files import read_manifest
from segue.core.errors import CheckpointError
from segue.core.fingerprints import token_digest
from segue.plugins.tokenizers.spectral_codec.config import SpectralCodecOptions
from segue.plugins.tokenizers.spectral_codec.model import SpectralCodec

USE = "spectral_codec.v1"
OPTIONS = SpectralCodecOptions(
    width=16, encoder_depth=1, decoder_depth=1, num_levels=2, codebook_size=8, codebook_dim=4
)


def codec(seed: int = 0) -> SpectralCodec:
    torch.manual_seed(seed)
    return SpectralCodec(OPTIONS).eval()


def change(part: nn.Module) -> None:
    with torch.no_grad():
        next(part.parameters()).add_(1.0)


def saved(directory: Path, component: SpectralCodec) -> Path:
    directory.mkdir()
    save_component(component, directory, "codec", USE, {})
    return directory


def loaded(directory: Path) -> SpectralCodec:
    component = codec(seed=1)
    load_state(component, directory, USE)
    return component


@pytest.fixture
def older(tmp_path: Path) -> tuple[Path, str]:
    """A checkpoint whose fingerprint hashes all weights, as older ones do."""
    directory = saved(tmp_path / "older", codec())
    fingerprint = token_digest(USE, OPTIONS, codec().state_dict())
    file = directory / "component.json"
    manifest = json.loads(file.read_text())
    manifest["spec"]["fingerprint"] = fingerprint
    del manifest["token_digest"]  # older ones have no such entry
    file.write_text(json.dumps(manifest))
    return directory, fingerprint


def test_a_fingerprint_follows_encoder_and_codes_alone() -> None:
    component = codec()
    before = component.seal(USE)
    change(component.decoder)
    component.quantizer.levels()[0].uses.add_(1.0)
    assert component.seal(USE) == before
    component.quantizer.levels()[1].codes.add_(1.0)
    codes = component.seal(USE)
    change(component.encoder)
    assert len({before, codes, component.seal(USE)}) == 3


def test_an_older_fingerprint_stays_while_tokens_stay(
    older: tuple[Path, str], tmp_path: Path
) -> None:
    directory, fingerprint = older
    component = loaded(directory)
    assert component.spec.fingerprint == fingerprint
    change(component.decoder)  # another decoder of the same tokens, saved and loaded
    again = saved(tmp_path / "again", component)
    assert read_manifest(again).token_spec.fingerprint == fingerprint  # type: ignore[union-attr]
    component = loaded(again)
    assert component.seal(USE) == component.spec.fingerprint == fingerprint
    change(component.encoder)
    fresh = saved(tmp_path / "fresh", component)
    assert loaded(fresh).spec.fingerprint == component.token_digest(USE) != fingerprint


def test_weights_of_other_tokens_are_refused(older: tuple[Path, str], tmp_path: Path) -> None:
    directory, _ = older
    other = loaded(directory)
    change(other.encoder)
    weights = saved(tmp_path / "other", other) / "model.safetensors"
    weights.replace(directory / "model.safetensors")
    with pytest.raises(CheckpointError, match="restore both files"):
        loaded(directory)


@pytest.mark.parametrize("bit", [False, True])
def test_other_weights_of_the_same_tokens_are_noticed(tmp_path: Path, bit: bool) -> None:
    """The decoder is no part of a fingerprint: a hash of the file is compared as well."""
    directory, other = saved(tmp_path / "one", codec()), codec()
    change(other.decoder)
    file = directory / "model.safetensors"
    if bit:
        data = bytearray(file.read_bytes())
        tensors = {key: value["data_offsets"][0] for key, value in json.loads(
            data[8 : 8 + int.from_bytes(data[:8], "little")]).items()}  # fmt: skip
        start = 8 + int.from_bytes(data[:8], "little")
        place = next(at for key, at in tensors.items() if key.startswith("decoder"))
        data[start + place] ^= 1
        file.write_bytes(data)
    else:
        (saved(tmp_path / "two", other) / file.name).replace(file)
    with pytest.raises(CheckpointError, match=r"model.safetensors: is damaged, or another file"):
        loaded(directory)
    manifest = json.loads((directory / "component.json").read_text())
    del manifest["weights_digest"]  # older ones have no such entry
    (directory / "component.json").write_text(json.dumps(manifest))
    assert loaded(directory).spec.fingerprint == codec().seal(USE)
