"""Pipelines and audio that ask for more memory than there is are refused before it is taken."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile
import torch

from segue.core import memory
from segue.core.assembly import assemble
from segue.core.audio import resample
from segue.core.checkpoint import load_component, save_component
from segue.core.checkpoint_files import MANIFEST, WEIGHTS
from segue.core.config_files import load_config
from segue.core.errors import (
    AssemblyError,
    AudioError,
    CheckpointError,
    ConfigError,
    DataError,
)
from segue.core.memory import available_memory, bounded_build, without_draws
from segue.core.plugins import PluginHost, default_host
from segue.core.yaml_files import MOST_BYTES, read_yaml
from segue.data.tars import expand, tar_index
from segue.data.token_store import read_shard_header
from segue.plugins.tokenizers.mel_kmeans.config import MelKMeansOptions
from segue.plugins.tokenizers.mel_kmeans.model import MelKMeansTokenizer
from segue.sound import reader
from segue.sound.reading import read_audio

TERABYTE = 1 << 40
HOST = PluginHost.discover(entry_points=False)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A directory as `segue train` writes it."""
    tokenizer = MelKMeansTokenizer(MelKMeansOptions(num_clusters=4))
    save_component(tokenizer, tmp_path, "semantic_tokenizer", "mel_kmeans.v1", {})
    return tmp_path


def change(directory: Path, **values: Any) -> None:
    path = directory / MANIFEST
    tree = json.loads(path.read_text())
    for key, value in values.items():
        tree[key] |= value
    path.write_text(json.dumps(tree))


def load(directory: Path) -> None:
    load_component(directory, HOST, "semantic_tokenizer")


# --- components -------------------------------------------------------------------------------


def test_options_that_ask_for_terabytes_are_refused(saved: Path) -> None:
    load(saved)
    change(saved, options={"num_clusters": 10**12})
    with pytest.raises(ConfigError, match=r"semantic_tokenizer: needs over .* GiB are free"):
        load(saved)


MAKERS: tuple[Callable[[], Any], ...] = (
    lambda: torch.nn.Linear(10**6, 10**6),
    lambda: torch.nn.Embedding(10**7, 10**6),
    lambda: torch.zeros(size=(10**13,)),
    lambda: torch.empty(10**6, 10**7),
    lambda: torch.full((10**13,), 1.0),
    lambda: torch.arange(10**13),
    lambda: torch.arange(0, 1, 1e-13),
    lambda: torch.eye(10**7),
    lambda: torch.hann_window(10**13),
    lambda: torch.linspace(0, 1, steps=10**13),
    lambda: torch.ones(1).new_zeros(10**13),
    lambda: torch.ones(1).repeat(10**13),
)


@pytest.mark.parametrize("make", MAKERS)
def test_every_way_to_make_a_tensor_is_bounded(make: Callable[[], Any]) -> None:
    with pytest.raises(ConfigError, match="GiB are free"), bounded_build("here"):
        make()


def test_what_fits_is_built() -> None:
    with bounded_build("here"):
        torch.nn.Linear(8, 8)
        torch.arange(0, 1, 0.1)
        torch.eye(3)
        torch.nn.Linear(10**7, 10**7, device="meta")
        assert torch.tensor(1e15) == 1e15


def test_endless_small_layers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MOST_TENSORS", 50)
    with pytest.raises(ConfigError, match="more than 50 tensors"), bounded_build("here"):
        torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(10**9))


def test_a_container_s_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 << 20 < available_memory() < 1 << 50
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    monkeypatch.setattr(memory, "CONTAINER", tmp_path)
    assert available_memory() == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory() > 1 << 20


# --- files of a pipeline ----------------------------------------------------------------------


def weights(saved: Path, header: bytes, length: int | None = None, size: int = 0) -> None:
    """Write a file of weights; the part of it that would hold numbers takes no disk."""
    with (saved / WEIGHTS).open("wb") as file:
        file.write((len(header) if length is None else length).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)


@pytest.mark.parametrize("length", [1 << 26, TERABYTE, (1 << 64) - 1])
def test_a_header_of_weights_that_is_long(saved: Path, length: int) -> None:
    weights(saved, b"{}", length)
    with pytest.raises(CheckpointError, match="its header states a length"):
        load(saved)


@pytest.mark.parametrize("kind", ["F32", "I8"])
def test_weights_that_promise_a_terabyte(saved: Path, kind: str) -> None:
    count = TERABYTE // (4 if kind == "F32" else 1)
    name = "centroids" + (":codes" if kind == "I8" else "")
    entry = {"dtype": kind, "shape": [count], "data_offsets": [0, TERABYTE]}
    weights(saved, json.dumps({name: entry}).encode(), size=TERABYTE)
    with pytest.raises(CheckpointError, match=r"GiB are free|cannot be read"):
        load(saved)


def test_descriptions_that_are_bombs(saved: Path) -> None:
    good = (saved / MANIFEST).read_text()
    for text in ("[" * 100_000, '{"a":' * 100_000, good.replace('"25"', '"1e999999999"')):
        assert text != good
        (saved / MANIFEST).write_text(text)
        with pytest.raises(CheckpointError, match="cannot be read"):
            load(saved)
    with (saved / MANIFEST).open("wb") as file:
        file.truncate(TERABYTE)
    with pytest.raises(CheckpointError, match=r"at most .* are read"):
        load(saved)


@pytest.mark.parametrize("text", ["a: " + "{b: " * 20_000, "- " * 50_000])
def test_yaml_of_any_depth_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="is not valid YAML"):
        read_yaml(path)


def test_long_yaml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_bytes(b"#" * (MOST_BYTES + 1))
    with pytest.raises(ConfigError, match="at most 1,048,576 are read"):
        read_yaml(path)


@pytest.mark.parametrize(
    "setting",
    [
        "codec.options.num_levels=1000000000",
        "codec.options.codebook_size=1000000000",
        "codec.options={sample_rate: 999999000, hop: 1000}",
        "codec.options={sample_rate: 48000, hop: 48000000, window: 96000000}",
        "codec.options={sample_rate: 44100, hop: 44099, window: 88198}",
        "codec.options.hop=0x" + "f" * 10_000,
        "codec.options.x=" + "[" * 250 + "]" * 250,
        "stages.acoustic.predicts=acoustic[0:99999999999]",
        "stages.acoustic.sampling.iterations=[1000000000]",
    ],
)
def test_a_config_that_asks_for_too_much_is_refused(setting: str) -> None:
    with pytest.raises((ConfigError, AssemblyError)):
        assemble(load_config("speech", HOST, [setting]).config, HOST)


# --- audio ------------------------------------------------------------------------------------


def silence(path: Path, seconds: float, rate: int = 16_000) -> Path:
    soundfile.write(path, numpy.full(round(seconds * rate), 0.25, numpy.float32), rate)
    return path


def test_audio_that_decodes_to_more_than_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = silence(tmp_path / "long.flac", 60)
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(reader, "CHECKED", 1000)
    monkeypatch.setattr(reader, "shortage", lambda n: "needs more" if n > 5_000_000 else None)
    with pytest.raises(AudioError, match=r"long\.flac: lasts 0\.0 h and needs more; cut it"):
        read_audio(path)
    assert read_audio(path, first_seconds=5).seconds == 5
    assert read_audio(path, last_seconds=5).seconds == 5


def test_a_stream_of_unknown_length_is_bounded_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = silence(tmp_path / "piped.flac", 60)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    path.write_bytes(data)
    monkeypatch.setattr(reader, "CHECKED", 1000)
    monkeypatch.setattr(reader, "shortage", lambda n: "needs more" if n > 5_000_000 else None)
    with pytest.raises(AudioError, match=r"piped\.flac: lasts 0\.0 h and needs more"):
        read_audio(path)


def test_resampling_to_more_than_there_is() -> None:
    wave = torch.zeros(1).expand(10**9)  # takes four bytes
    with pytest.raises(AudioError, match="1,000,000 s at 768000 Hz needs"):
        resample(wave, 1000, 768_000)


# --- data -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_tar_whose_names_take_a_terabyte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: bytes
) -> None:
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path / "cache"))
    header = tarfile.TarInfo("long")
    header.type, header.size = kind, TERABYTE
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.truncate(TERABYTE + 1024)
    members, problems = tar_index(str(tmp_path / "a.tar"))
    assert members == [] and "not a plain tar" in problems[0][1]


def test_a_pattern_that_stands_for_endless_names() -> None:
    assert len(expand("a-{000..012}.tar")) == 13
    with pytest.raises(DataError, match="over 1000000 names"):
        expand("a-{0..99999999999}.tar")


def test_a_shard_whose_header_or_index_is_too_long(
    tmp_path: Path,
) -> None:
    path = tmp_path / "train-00000.safetensors"

    def write(shape: list[int], length: int | None = None, size: int = 0) -> None:
        about = {"segue": json.dumps({"problems": [], "groups": [], "digest": ""})}
        entry = {"dtype": "I32", "shape": shape, "data_offsets": [0, size]}
        text = json.dumps({"__metadata__": about, "frames": entry}).encode()
        with path.open("wb") as file:
            file.write((length or len(text)).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + size)

    write([0], length=TERABYTE)
    with pytest.raises(DataError, match="its header states a length"):
        read_shard_header(str(path))
    write([-2])
    with pytest.raises(DataError, match=r"is negative|cut off"):
        read_shard_header(str(path))
    write([TERABYTE // 4], size=TERABYTE)
    with pytest.raises(DataError, match="GiB are free"):
        read_shard_header(str(path)).small("frames")


def test_weights_that_will_be_loaded_are_not_drawn() -> None:
    before = torch.get_rng_state()
    with without_draws():
        modules = [torch.nn.Linear(3, 4), torch.nn.Embedding(5, 2), torch.nn.Conv1d(2, 3, 3)]
        torch.nn.init.normal_(modules[0].weight, std=0.02)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(weight.any() for module in modules for weight in module.parameters())


def test_what_is_drawn_and_not_saved_is_drawn() -> None:
    with without_draws():
        drawn = torch.empty(100).normal_(generator=torch.Generator().manual_seed(3))
    assert torch.equal(drawn, torch.empty(100).normal_(generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("name", ["flat_transformer.v1", "masked_transformer.v1"])
def test_endless_layers_are_refused_by_the_options(name: str) -> None:
    with pytest.raises(ConfigError, match="less than or equal to 1000"):
        default_host().options("stage_lm", name, {"depth": 10**6}, "stages.semantic.lm")
