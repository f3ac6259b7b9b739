"""Lyra in PyTorch: its contract, its released weights, and the models that they come from."""

from __future__ import annotations

import copy
import os
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from segue.core.checkpoint import load_component
from segue.core.config_files import find_config
from segue.core.errors import ConfigError
from segue.core.interfaces import Component
from segue.core.plugins import default_host
from segue.plugins.tokenizers.lyra.config import LyraOptions
from segue.plugins.tokenizers.lyra.model import LyraCodec
from segue.testing import Check, Subject, parametrize_with_checks, ragged_audio

_BESIDE = Path(__file__).parents[4] / "shared" / "data" / "models" / "lyra_v2"
MODELS = Path(os.environ.get("SEGUE_LYRA_MODELS", _BESIDE))
needs_models = pytest.mark.skipif(
    not (MODELS / "quantizer.tflite").is_file(),
    reason="set SEGUE_LYRA_MODELS to a directory with Lyra's .tflite files",
)


@cache
def loaded() -> LyraCodec:
    directory = find_config("speech", default_host()).parent / "lyra"
    codec = load_component(directory, default_host(), "codec")
    assert isinstance(codec, LyraCodec)
    return codec.eval()


def shipped() -> LyraCodec:
    return copy.deepcopy(loaded())


def factory(_: object) -> Component:
    codec = LyraCodec(LyraOptions())
    codec.load_state_dict(loaded().state_dict())
    return codec.eval()


@parametrize_with_checks([Subject("codec", factory, label="lyra.v2")])
def test_conformance(subject: Subject, check: Check) -> None:
    check(subject)


def test_a_level_is_400_bits_a_second() -> None:
    spec = LyraOptions(num_levels=6).spec()
    assert (spec.num_levels, spec.codebook_size) == (6, 256)
    assert (spec.sample_rate, spec.frame_rate) == (16_000, Fraction(50))


@pytest.mark.parametrize(
    ("option", "value"), [("num_levels", 24), ("strides", [2, 4, 5, 8]), ("sample_rate", 24_000)]
)
def test_its_network_is_fixed(option: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        default_host().create("codec", "lyra.v2", {option: value}, place="codec")
    assert caught.value.place.startswith(f"codec.options.{option}")


def spectra(wave: Tensor) -> Tensor:
    return torch.stft(wave, 512, 256, window=torch.hann_window(512), return_complex=True).abs()


def test_more_levels_come_closer() -> None:
    audio, codec = ragged_audio([16_000], 16_000), shipped()
    tokens = codec.encode(audio.wave, audio.lengths)
    errors = []
    for levels in (1, 4, 8):
        made = codec.decode(tokens.ids[:, :levels], tokens.lengths)[:, :16_000]
        errors.append(float((spectra(audio.wave) - spectra(made)).square().mean()))
    assert errors[0] > errors[1] > errors[2]


@needs_models
def test_it_computes_what_the_released_models_compute() -> None:
    """Compare with the models called by hand, one frame after the other.

    They round activations to eight bits, so latent frames differ by some percent.
    """
    np = pytest.importorskip("numpy")
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter
    codec, audio = shipped(), ragged_audio([8000], 16_000)

    def run(name: str, frames: Tensor) -> Tensor:
        model = interpreter(str(MODELS / name))
        model.allocate_tensors()
        given, made = model.get_input_details()[0], model.get_output_details()[0]
        outputs = []
        for frame in frames:
            model.set_tensor(given["index"], frame.reshape(*given["shape"]).numpy())
            model.invoke()
            outputs.append(model.get_tensor(made["index"]).reshape(-1).copy())
        return torch.from_numpy(np.stack(outputs))

    with torch.no_grad():
        latents = run("soundstream_encoder.tflite", audio.wave.reshape(25, 320))
        ours = codec._latents(audio.wave, None)[0]
        assert float((ours - latents).norm() / latents.norm()) < 0.15
        codes = codec.quantizer.encode(latents[None])
        exact = codec.quantizer.decode(codes)
        wave = run("lyragan.tflite", exact[0]).flatten()
        decoded = codec.decode(codes, torch.tensor([25]))[0]
        assert float((decoded - wave).norm() / wave.norm()) < 0.15

    quantizer = interpreter(str(MODELS / "quantizer.tflite"))
    indices = np.full((46, 1, 1), -1, np.int32)
    indices[:2, 0, 0] = divmod(int(codes[0, 0, 0]), 16)
    summed = quantizer.get_signature_runner("decode")(encoding_indices=indices)["output_0"]
    book = codec.quantizer.levels()[0].codes[codes[0, 0, 0]]
    assert torch.allclose(book, torch.from_numpy(summed).flatten(), atol=0.01)
