"""Lyra: its options always, its models where their files are."""

from __future__ import annotations

import os
import pickle
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("ai_edge_litert")

from segue.core.checkpoint import load_component, save_component
from segue.core.errors import CheckpointError, ConfigError
from segue.core.interfaces import Component, Tokens
from segue.core.plugins import default_host
from segue.plugins.tokenizers.lyra.config import FILES, LyraOptions
from segue.plugins.tokenizers.lyra.model import LyraCodec, LyraDecoderStream
from segue.testing import Check, Subject, parametrize_with_checks, ragged_audio

_BESIDE = Path(__file__).parents[4] / "shared" / "data" / "models" / "lyra_v2"
WEIGHTS = Path(os.environ.get("SEGUE_LYRA_WEIGHTS", _BESIDE))
needs_weights = pytest.mark.skipif(
    not (WEIGHTS / FILES["encoder"]).is_file(),
    reason="set SEGUE_LYRA_WEIGHTS to a directory with Lyra's models",
)


def create(**options: Any) -> LyraCodec:
    values = {"weights": str(WEIGHTS), "num_quantizers": 8} | options
    codec = default_host().create("codec", "lyra.v1", values, place="codec")
    assert isinstance(codec, LyraCodec)
    return codec.eval()


def factory(_: object) -> Component:
    return create(num_quantizers=6)


@needs_weights
@parametrize_with_checks([Subject("codec", factory, label="lyra.v1")])
def test_conformance(subject: Subject, check: Check) -> None:
    check(subject)


# --- options, without the models ------------------------------------------------------------------


@pytest.mark.parametrize(("quantizers", "levels"), [(2, 1), (16, 8), (46, 23)])
def test_a_level_is_a_pair_of_quantizers(quantizers: int, levels: int) -> None:
    spec = LyraOptions(weights="nowhere", num_quantizers=quantizers).spec()
    assert (spec.num_levels, spec.codebook_size) == (levels, 256)
    assert (spec.sample_rate, spec.frame_rate) == (16_000, Fraction(50))


@pytest.mark.parametrize("quantizers", [0, 7, 48])
def test_numbers_of_quantizers_that_cannot_be_used_are_refused(quantizers: int) -> None:
    with pytest.raises(ConfigError) as caught:
        create(num_quantizers=quantizers)
    assert caught.value.place == "codec.options.num_quantizers"


def test_missing_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / FILES["encoder"]).write_bytes(b"x")
    for directory in (tmp_path / "gone", tmp_path):
        with pytest.raises(ConfigError) as caught:
            create(weights=str(directory))
        assert caught.value.place.endswith("weights")


def write_models(directory: Path, seed: int) -> Path:
    """Files with the names of models that are none."""
    directory.mkdir()
    for name in FILES.values():
        (directory / name).write_bytes(f"{name} {seed}".encode())
    return directory


def test_files_that_are_not_models_are_refused(tmp_path: Path) -> None:
    codec = create(weights=str(write_models(tmp_path / "a", 0)))
    with pytest.raises(CheckpointError, match="LiteRT"):
        codec.encode(torch.zeros(1, 320), torch.tensor([320]))


def test_fingerprint_is_of_the_content_not_of_the_place(tmp_path: Path) -> None:
    made = [write_models(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    prints = [create(weights=str(directory)).seal("lyra.v1") for directory in made]
    assert prints[0] == prints[1] != prints[2]
    one = made[1] / FILES["decoder"]
    one.write_bytes(one.read_bytes() + b"!")
    assert create(weights=str(made[1])).seal("lyra.v1") != prints[0]
    assert create(weights=str(made[0]), num_quantizers=10).seal("lyra.v1") != prints[0]


def test_exchanged_weights_are_noticed(tmp_path: Path) -> None:
    for seed in (0, 1):
        codec = create(weights=str(write_models(tmp_path / f"models{seed}", seed)))
        (tmp_path / f"saved{seed}").mkdir()
        save_component(codec, tmp_path / f"saved{seed}", "codec", "lyra.v1", {})
    name = "model.safetensors"
    shutil.copy(tmp_path / "saved1" / name, tmp_path / "saved0" / name)
    with pytest.raises(CheckpointError, match="fingerprint"):
        load_component(tmp_path / "saved0", default_host(), "codec")


def test_a_codec_without_weights_says_so(tmp_path: Path) -> None:
    found = create(weights=str(write_models(tmp_path / "a", 0))).config
    with pytest.raises(CheckpointError, match="no weights yet"):
        LyraCodec(found).encode(torch.zeros(1, 320), torch.tensor([320]))


# --- with the models ------------------------------------------------------------------------------


@needs_weights
def test_codes_are_those_of_the_models_in_pairs() -> None:
    """Against the models called by hand, one frame after the other."""
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    audio = ragged_audio([3000], 16_000)
    tokens = create(num_quantizers=8).encode(audio.wave, audio.lengths)
    encoder = Interpreter(str(WEIGHTS / FILES["encoder"]))
    encoder.allocate_tensors()
    quantizer = Interpreter(str(WEIGHTS / FILES["quantizer"]))
    quantize = quantizer.get_signature_runner("encode")
    frames = torch.nn.functional.pad(audio.wave, (0, 200)).reshape(10, 1, 320).numpy()
    for index, frame in enumerate(frames):
        encoder.set_tensor(encoder.get_input_details()[0]["index"], frame)
        encoder.invoke()
        seen = encoder.get_tensor(encoder.get_output_details()[0]["index"])
        codes = quantize(input_frames=seen, num_quantizers=np.array(46, np.int32))["output_0"]
        pairs = codes.reshape(23, 2)[:4]
        assert tokens.ids[0, :, index].tolist() == [int(16 * a + b) for a, b in pairs]


@needs_weights
def test_more_quantizers_come_closer() -> None:
    audio = ragged_audio([16_000], 16_000)
    errors = []
    for quantizers in (2, 8, 46):
        codec = create(num_quantizers=quantizers)
        tokens = codec.encode(audio.wave, audio.lengths)
        spectra = [
            torch.stft(wave, 512, 256, window=torch.hann_window(512), return_complex=True).abs()
            for wave in (audio.wave, codec.decode(tokens.ids, tokens.lengths)[:, :16_000])
        ]
        errors.append(float((spectra[0] - spectra[1]).square().mean()))
    assert errors[0] > errors[1] > errors[2]


@needs_weights
def test_streams_do_not_disturb_each_other_nor_the_codec() -> None:
    codec = create()
    codes = torch.randint(256, (2, 4, 20))
    offline = codec.decode(codes, torch.tensor([20, 20]))
    one, other = codec.streaming_decoder(), codec.streaming_decoder()
    assert isinstance(one, LyraDecoderStream)
    pieces = []
    for part in codes.split(7, dim=2):
        pieces.append(one.push(part))
        other.push(part.flip(1))
        codec.decode(codes[:, :, :3], torch.tensor([3, 3]))
    assert torch.equal(torch.cat(pieces, dim=1), offline)
    assert one.finish().shape == (2, 0)
    assert torch.equal(one.push(codes[:1]), offline[:1])


@needs_weights
def test_a_saved_codec_is_opened_without_its_files(tmp_path: Path) -> None:
    shutil.copytree(WEIGHTS, tmp_path / "files")
    codec = create(weights=str(tmp_path / "files"))
    audio = ragged_audio([5000, 321], 16_000)
    tokens = codec.encode(audio.wave, audio.lengths)
    (tmp_path / "saved").mkdir()
    save_component(codec, tmp_path / "saved", "codec", "lyra.v1", {})
    shutil.rmtree(tmp_path / "files")
    loaded = load_component(tmp_path / "saved", default_host(), "codec")
    assert isinstance(loaded, LyraCodec)
    assert loaded.spec == codec.spec and loaded.spec.fingerprint
    assert torch.equal(loaded.encode(audio.wave, audio.lengths).ids, tokens.ids)


@needs_weights
def test_loading_other_weights_is_seen_by_a_codec_in_use() -> None:
    codec = create()
    silence = torch.zeros(1, 640), torch.tensor([640])
    codec.encode(*silence)
    codec.load_state_dict({key: value * 0 for key, value in codec.state_dict().items()})
    with pytest.raises(CheckpointError, match="no weights yet"):
        codec.encode(*silence)


@needs_weights
def test_a_codec_can_be_pickled_and_takes_empty_rows() -> None:
    codec = create()
    tokens = codec.encode(torch.ones(2, 321), torch.tensor([321, 0]))
    assert tokens.lengths.tolist() == [2, 0]
    again = pickle.loads(pickle.dumps(codec)).encode(torch.ones(2, 321), torch.tensor([321, 0]))
    assert torch.equal(again.ids, tokens.ids)
    assert codec.encode(torch.ones(0, 9), torch.ones(0, dtype=torch.long)).ids.shape == (0, 4, 0)
    assert codec.decode(Tokens.empty(2, 4).ids, torch.tensor([0, 0])).shape == (2, 0)
