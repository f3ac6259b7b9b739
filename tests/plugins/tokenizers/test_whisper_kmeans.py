"""Tokens of Whisper's encoder."""

from __future__ import annotations

import runpy
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from segue.core.errors import CheckpointError
from segue.plugins.tokenizers.whisper_kmeans.config import WhisperKMeansOptions
from segue.plugins.tokenizers.whisper_kmeans.model import (
    Encoder,
    LogMel,
    sinusoids,
)
from segue.testing import Check, Subject, checks_for, parametrize_with_checks

TOOLS = Path(__file__).resolve().parents[3] / "tools"
tool = SimpleNamespace(**runpy.run_path(str(TOOLS / "import_whisper.py")))
TINY: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2, "num_clusters": 16}
SUBJECTS = [
    Subject("semantic_tokenizer", "whisper_kmeans.v1", TINY),
    Subject("semantic_tokenizer", "whisper_kmeans.v1", TINY | {"pool": 1}, label="50 Hz"),
]


@parametrize_with_checks(SUBJECTS[:1])
def test_conformance(subject: Subject, check: Check) -> None:
    check(subject)


@pytest.mark.parametrize("name", ["emits_what_its_spec_declares", "batch_equals_rows"])
def test_tokens_at_another_rate(name: str) -> None:
    (check,) = (check for check in checks_for("semantic_tokenizer") if check.name == name)
    check(SUBJECTS[1])


@pytest.mark.slow
@parametrize_with_checks(SUBJECTS[1:])
def test_conformance_at_another_rate(subject: Subject, check: Check) -> None:
    check(subject)


def written(path: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> Path:
    """Write a model.bin as CTranslate2 does."""
    kinds = {"float32": 0, "int16": 2, "float16": 4}

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    data = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(tensors))
    for name, values in tensors.items():
        shape = struct.pack(f"<B{values.ndim}I", values.ndim, *values.shape)
        size = struct.pack("<BI", kinds[str(values.dtype)], values.nbytes)
        data += text(name) + shape + size + values.tobytes()
    path.write_bytes(data + struct.pack("<I", 0))
    return path


def test_weights_are_read_from_a_file(tmp_path: Path) -> None:
    encoder = Encoder(WhisperKMeansOptions(**TINY))
    theirs = {
        f"encoder/layer_{number}/{name}": encoder.state_dict()[f"blocks.{number}.{ours}"]
        for number in range(2)
        for ours, name in tool.BLOCK.items()
    } | {
        f"encoder/{part}/{kind}": encoder.state_dict()[f"{part}.{kind}"]
        for part in ("conv1", "conv2")
        for kind in ("weight", "bias")
    }
    tensors = {name: value.half().numpy() for name, value in theirs.items()}
    path = written(tmp_path / "model.bin", tensors | {"heads": np.array(2, np.int16)})
    variables = tool.read_variables(path)
    assert variables["heads"] == 2
    other = Encoder(WhisperKMeansOptions(**TINY))
    other.load_state_dict(tool.encoder_state(variables, 2))
    for name, value in encoder.state_dict().items():
        assert torch.equal(other.state_dict()[name], value.half().float()), name


@pytest.mark.parametrize("cut", [3, 40, 200])
def test_files_that_are_cut_off_are_refused(tmp_path: Path, cut: int) -> None:
    path = written(tmp_path / "model.bin", {"a": np.zeros((40, 2), np.float32)})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=r"model\.bin"):
        tool.read_variables(path)


def test_spectra_are_those_of_whisper() -> None:
    extractor = pytest.importorskip("faster_whisper.feature_extractor").FeatureExtractor()
    wave = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    ours = LogMel(80)(torch.from_numpy(wave)[None])[0].numpy()
    assert ours.shape == (80, 100)
    np.testing.assert_allclose(ours, extractor(wave, padding=0)[:, :100], atol=1e-4)


def test_positions_are_sines_then_cosines() -> None:
    table = sinusoids(10, 8)
    assert table[0].tolist() == [0.0] * 4 + [1.0] * 4
    assert table[3, 0] == pytest.approx(np.sin(3.0)) and table[3, 7] == pytest.approx(
        np.cos(3.0 / 10_000)
    )


@pytest.mark.parametrize(
    "options", [{"heads": 3}, {"window_seconds": 31}, {"margin_seconds": 10}, {"width": 15}]
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        WhisperKMeansOptions(**options)
