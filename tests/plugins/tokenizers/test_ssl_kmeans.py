"""Clusters over pretrained models: tiny random ones, saved as released ones are."""

# ruff: noqa: E402 (what comes after importorskip needs the extra)

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

transformers = pytest.importorskip("transformers")

import torchaudio
from safetensors.torch import load_file, save_file
from tests.conftest import TINY

from segue.core.assembly import resolve_part
from segue.core.checkpoint import build_part, load_component, load_state, save_component
from segue.core.checkpoint_files import read_manifest
from segue.core.config_files import load_config
from segue.core.errors import AssemblyError, CheckpointError, ConfigError
from segue.core.plugins import PluginHost
from segue.plugins.tokenizers.ssl_kmeans.config import SslKMeansOptions
from segue.plugins.tokenizers.ssl_kmeans.model import SslKMeansTokenizer
from segue.testing import Check, Subject, parametrize_with_checks, ragged_audio
from segue.training.workspace import Workspace, train_part

SIZE = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
WAVE = SIZE | {
    "conv_dim": (8,) * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
DATA2VEC = {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 5}
MODELS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "hubert": ("Hubert", WAVE, True),
    "hubert-stable": ("Hubert", WAVE | STABLE, True),
    "wav2vec2": ("Wav2Vec2", WAVE, True),
    "wav2vec2-stable": ("Wav2Vec2", WAVE | STABLE, True),
    "wavlm": ("WavLM", WAVE, False),
    "wavlm-stable": ("WavLM", WAVE | STABLE, True),
    "unispeech-sat": ("UniSpeechSat", WAVE, True),
    "data2vec": ("Data2VecAudio", WAVE | DATA2VEC, True),
    "wav2vec2-bert": ("Wav2Vec2Bert", SIZE, True),
}


def whole_model(name: str) -> Any:
    kind, values, _ = MODELS[name]
    torch.manual_seed(1)
    config = getattr(transformers, f"{kind}Config")(**values)
    return getattr(transformers, f"{kind}Model")(config).eval()


def extractor(name: str) -> Any:
    if name == "wav2vec2-bert":
        return transformers.SeamlessM4TFeatureExtractor()
    return transformers.Wav2Vec2FeatureExtractor(do_normalize=MODELS[name][2])


def save(name: str, directory: Path) -> Path:
    whole_model(name).save_pretrained(directory)
    extractor(name).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    found: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in found:
            found[name] = save(name, tmp_path_factory.mktemp(name))
        return found[name]

    return get


def build(source: Path | str, **options: Any) -> SslKMeansTokenizer:
    values = {"pretrained": str(source), "layer": 2, "num_clusters": 16} | options
    return SslKMeansTokenizer(SslKMeansOptions(**values))


def fitted(source: Path | str, **options: Any) -> SslKMeansTokenizer:
    tokenizer = build(source, **options)
    tokenizer.fit([ragged_audio([48_000, 32_000], 16_000)])
    return tokenizer


# --- every promise ----------------------------------------------------------------------------


def subject(name: str, **options: Any) -> Subject:
    """Built where the model is saved, the first time that it is asked for."""
    directory: list[tempfile.TemporaryDirectory[str]] = []  # removed with this function

    def make(chosen: SslKMeansOptions) -> SslKMeansTokenizer:
        if not directory:
            directory.append(tempfile.TemporaryDirectory())
            save(name, Path(directory[0].name))
        return SslKMeansTokenizer(chosen.model_copy(update={"pretrained": directory[0].name}))

    values = {"pretrained": "replaced", "layer": 2, "num_clusters": 16} | options
    label = "-".join([name, *(str(value) for value in options.values())])
    return Subject("semantic_tokenizer", make, SslKMeansOptions(**values), label=label)


@parametrize_with_checks([subject("hubert", pool=2)])
def test_conformance(subject: Subject, check: Check) -> None:
    check(subject)


@pytest.mark.slow
@parametrize_with_checks([subject("wavlm-stable"), subject("wav2vec2-bert")])
def test_conformance_of_other_models(subject: Subject, check: Check) -> None:
    check(subject)


# --- parity with the model that is wrapped ----------------------------------------------------


def reference(name: str, wave: Tensor, layer: int) -> Tensor:
    """``[N, D]``, by the model and the feature extractor of transformers alone."""
    inputs = extractor(name)
    if name == "wav2vec2-bert":
        prepared = inputs(
            torch.nn.functional.pad(wave, (0, 240)).numpy(), sampling_rate=16_000,
            return_tensors="pt",
        )["input_features"]  # fmt: skip
    else:
        prepared = inputs(wave.numpy(), sampling_rate=16_000, return_tensors="pt")["input_values"]
        prepared = torch.nn.functional.pad(prepared, (0, 80))
    with torch.no_grad():
        states = whole_model(name)(prepared, output_hidden_states=True).hidden_states
    return states[layer][0]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("name", "layer"),
    [*((name, 2) for name in MODELS), ("hubert-stable", 3), ("wav2vec2-bert", 1)],
)
def test_features_are_the_hidden_states(
    name: str, layer: int, saved: Callable[[str], Path]
) -> None:
    wave = ragged_audio([16_000], 16_000).wave
    tokenizer = build(saved(name), layer=layer)
    assert tokenizer.spec.frame_size == 320
    found = tokenizer.features(wave.double(), torch.tensor([16_000]))
    wanted = reference(name, wave[0], layer)
    assert found.shape[1] == wanted.shape[0] == 50
    assert torch.allclose(found[0].float(), wanted, atol=2e-4), (found[0] - wanted).abs().max()


def test_frames_inside_are_those_of_audio_without_silence_behind(
    saved: Callable[[str], Path],
) -> None:
    """What the convolutions see of the audio is what they see in the model's own use."""
    tokenizer = build(saved("wavlm-stable"))
    wave = ragged_audio([16_080], 16_000).wave[0].double()
    seen: list[Tensor] = []
    tokenizer.backbone.model.feature_extractor.register_forward_hook(
        lambda module, inputs, output: seen.append(output)
    )
    tokenizer.features(wave[None], torch.tensor([16_080]))
    inputs = extractor("wavlm-stable")(wave.numpy(), sampling_rate=16_000, return_tensors="pt")
    own = whole_model("wavlm-stable").feature_extractor(inputs["input_values"])
    assert own.shape[2] == 50 and seen[0].shape[2] == 51
    assert torch.allclose(seen[0][..., :50], own, atol=1e-4)


def test_normalisation_is_that_of_the_feature_extractor(saved: Callable[[str], Path]) -> None:
    wave = 0.1 * ragged_audio([8_000], 16_000).wave.double() + 0.02
    length = torch.tensor([8_000])
    normalised, plain = build(saved("wavlm-stable")), build(saved("wavlm"))
    quiet, loud = (normalised.features(factor * wave, length) for factor in (1.0, 4.0))
    assert torch.allclose(quiet, loud, atol=1e-3)
    quiet, loud = (plain.features(factor * wave, length) for factor in (1.0, 4.0))
    assert plain.config.found is not None and not plain.config.found.preprocessor["do_normalize"]
    assert quiet.shape == loud.shape


def test_pooled_features_are_means(saved: Callable[[str], Path]) -> None:
    wave = ragged_audio([16_000 - 320], 16_000).wave.double()
    length = torch.tensor([wave.shape[1]])
    single, pooled = build(saved("hubert")), build(saved("hubert"), pool=2)
    assert (single.spec.frame_rate, pooled.spec.frame_rate) == (50, 25)
    fine, coarse = (t.features(wave, length)[0] for t in (single, pooled))
    assert fine.shape[0] == 49 and coarse.shape[0] == 25
    assert torch.allclose(coarse[:24], fine[:48].unflatten(0, (24, 2)).mean(1), atol=1e-5)
    assert torch.allclose(coarse[24], fine[48], atol=1e-5)


def test_long_audio_is_encoded_in_windows(saved: Callable[[str], Path]) -> None:
    wave = ragged_audio([80_000], 16_000).wave.double()
    length = torch.tensor([80_000])
    whole = build(saved("wavlm"), window_seconds=10).features(wave, length)
    cut = build(saved("wavlm"), window_seconds=2, margin_seconds=0.5).features(wave, length)
    assert cut.shape == whole.shape == (1, 250, 16)
    assert (cut - whole).abs().mean() < 0.2 * whole.std()


def test_a_mert_runs_as_a_hubert(saved: Callable[[str], Path], tmp_path: Path) -> None:
    whole_model("hubert").save_pretrained(tmp_path)
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=24_000).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text()) | {
        "model_type": "mert_model",
        "auto_map": {"AutoModel": "modeling_MERT.MERTModel"},
        "feature_extractor_cqt": False,
        "deepnorm": False,
        "attention_relax": -1.0,
    }
    path.write_text(json.dumps(values))
    tokenizer = build(tmp_path)
    assert (tokenizer.spec.sample_rate, tokenizer.spec.frame_rate) == (24_000, 75)
    wave = ragged_audio([9600], 16_000).wave.double()
    own = build(saved("hubert")).features(wave, torch.tensor([9600]))
    assert torch.allclose(tokenizer.features(wave, torch.tensor([9600])), own, atol=1e-6)
    path.write_text(json.dumps(values | {"feature_extractor_cqt": True}))
    with pytest.raises(ConfigError, match="feature_extractor_cqt"):
        build(tmp_path)


# --- saved and opened again -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hubert", "wav2vec2-bert"])
def test_it_is_opened_without_its_source(name: str, tmp_path: Path) -> None:
    source = save(name, tmp_path / "source")
    tokenizer = fitted(source)
    directory = tmp_path / "component"
    directory.mkdir()
    save_component(tokenizer, directory, "semantic_tokenizer", "ssl_kmeans.v1", {})
    for file in source.iterdir():
        file.unlink()
    source.rmdir()
    opened = load_component(directory, PluginHost.discover(entry_points=False), "test")
    assert isinstance(opened, SslKMeansTokenizer)
    audio = ragged_audio([16_000, 7_000], 16_000)
    ids = tokenizer.encode(audio.wave, audio.lengths).ids
    assert torch.equal(opened.encode(audio.wave, audio.lengths).ids, ids)
    assert opened.spec == tokenizer.spec


def test_segue_train_fits_it_and_the_source_may_go(tmp_path: Path, recordings_folder: Path) -> None:
    source = save("hubert", tmp_path / "source")
    host = PluginHost.discover(entry_points=False)
    part = "semantic_tokenizer"
    overrides = [
        f"{part}.use=ssl_kmeans.v1",
        f"{part}.options={{pretrained: {source}, layer: 2, pool: 2, num_clusters: 16}}",
    ]
    config = load_config("speech/baseline", host, [*TINY, *overrides]).config
    space = Workspace(config, tmp_path / "run", recordings_folder, host)
    checkpoint = train_part(space, part)
    written = read_manifest(checkpoint)
    assert written.token_spec is not None and written.token_spec.frame_rate == 25
    assert written.options["found"]["config"]["model_type"] == "hubert"
    shutil.rmtree(source)
    slot = space.current().slots[part]
    planned = resolve_part(slot, host)
    opened = build_part(planned, host, allow_untrained=False)
    assert isinstance(opened, SslKMeansTokenizer) and opened.spec == written.token_spec
    options = {"options": {"pretrained": str(source), "layer": 1}}
    changed = slot.component.model_copy(update=options)
    with pytest.raises(AssemblyError, match=r"is 1, but the checkpoint .* was trained with 2"):
        resolve_part(replace(slot, component=changed), host)


def test_the_fingerprint_does_not_depend_on_where_the_model_lies(tmp_path: Path) -> None:
    first, second = (fitted(save("hubert", tmp_path / name)) for name in ("a", "b"))
    assert first.seal("x.v1") == second.seal("x.v1")


def test_clusters_of_another_layer_are_refused(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    """Layer 2 with the clusters of layer 1: same sizes, another meaning."""
    lower, upper = fitted(saved("hubert"), layer=1), build(saved("hubert"), layer=2)
    assert lower.seal("x.v1") != upper.seal("x.v1")
    mixed = upper.state_dict() | {
        key: value for key, value in lower.state_dict().items() if not key.startswith("backbone.")
    }
    save_component(lower, tmp_path, "semantic_tokenizer", "ssl_kmeans.v1", {})
    save_file(mixed, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="fingerprint"):
        load_state(upper, tmp_path, "ssl_kmeans.v1")


def test_the_model_is_neither_trained_nor_in_train_mode(saved: Callable[[str], Path]) -> None:
    tokenizer = build(saved("hubert")).train()
    assert tokenizer.training and not any(m.training for m in tokenizer.backbone.modules())
    assert not any(p.requires_grad for p in tokenizer.parameters())
    assert not any("masked_spec_embed" in key for key in tokenizer.state_dict())
    assert not any("encoder.layers.2" in key for key in tokenizer.state_dict())  # above the layer


# --- torchaudio -------------------------------------------------------------------------------


def tiny_bundle(normalise: bool, wavlm: bool = False) -> tuple[Any, Any]:
    """A small bundle of torchaudio's own class, and its model."""
    base = torchaudio.pipelines.WAVLM_BASE if wavlm else torchaudio.pipelines.HUBERT_BASE
    params = dict(base._params) | {
        "extractor_conv_layer_config": [(8, k, s) for _, k, s in
                                        base._params["extractor_conv_layer_config"]],
        "encoder_embed_dim": 16, "encoder_num_layers": 3, "encoder_num_heads": 2,
        "encoder_ff_interm_features": 24, "encoder_pos_conv_kernel": 8,
        "encoder_pos_conv_groups": 2,
    }  # fmt: skip
    bundle = type(base)("none", params, 16_000, normalise, _model_type=base._model_type)
    torch.manual_seed(2)
    make = torchaudio.models.wavlm_model if wavlm else torchaudio.models.wav2vec2_model
    return bundle, make(**params).eval()


@pytest.mark.parametrize(("normalise", "wavlm"), [(False, False), (True, False), (False, True)])
def test_a_bundle_of_torchaudio_gives_its_own_features(
    normalise: bool, wavlm: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, model = tiny_bundle(normalise, wavlm)
    monkeypatch.setattr(torchaudio.pipelines, "HUBERT_BASE", bundle)
    state = tmp_path / "hubert.safetensors"
    save_file({key: value.clone() for key, value in model.state_dict().items()}, state)
    tokenizer = fitted("torchaudio:HUBERT_BASE", state=str(state))
    wave = ragged_audio([16_000], 16_000).wave
    prepared = torch.nn.functional.layer_norm(wave, wave.shape) if normalise else wave
    with torch.no_grad():
        states, _ = model.extract_features(torch.nn.functional.pad(prepared, (0, 80)))
    found = tokenizer.features(wave.double(), torch.tensor([16_000]))
    assert torch.allclose(found[0].float(), states[1][0], atol=1e-4)
    monkeypatch.undo()
    state.unlink()
    target = tmp_path / "component"
    target.mkdir()
    save_component(tokenizer, target, "semantic_tokenizer", "ssl_kmeans.v1", {})
    opened = load_component(target, PluginHost.discover(entry_points=False), "test")
    assert isinstance(opened, SslKMeansTokenizer)
    lengths = torch.tensor([16_000])
    assert torch.equal(opened.encode(wave, lengths).ids, tokenizer.encode(wave, lengths).ids)


def test_bundles_are_described_without_their_weights() -> None:
    options = {"state": "unread", "layer": 1}
    shape = SslKMeansOptions(pretrained="torchaudio:WAVLM_LARGE", **options).shape()
    assert (shape.sample_rate, shape.stride, shape.reach) == (16_000, 320, 400)
    assert (shape.num_layers, shape.width) == (24, 1024)
    with pytest.raises(ConfigError, match="HUBERT_BASE"):
        SslKMeansOptions(pretrained="torchaudio:HUBERT_BASS", **options).shape()


# --- refusals ---------------------------------------------------------------------------------


def refused(source: Path | str, word: str, **options: Any) -> str:
    """Return the place of the error, whose problem names a word."""
    with pytest.raises(ConfigError) as caught:
        build(source, **options)
    assert word in caught.value.problem
    return caught.value.place


def test_a_layer_that_does_not_exist_is_refused(saved: Callable[[str], Path]) -> None:
    assert refused(saved("hubert"), "3 layers", layer=4) == "layer"


def test_incomplete_and_other_models_are_refused(tmp_path: Path) -> None:
    assert refused("./no/such/place", "no directory") == "pretrained"
    whole_model("hubert").save_pretrained(tmp_path)
    assert refused(tmp_path, "preprocessor_config.json") == "pretrained"
    save("hubert", tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {k: v for k, v in load_file(path).items() if "layers.1.attention" not in k}
    save_file(tensors, path, metadata={"format": "pt"})
    assert refused(tmp_path, "encoder.layers.1") == "pretrained"
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "whisper"}))
    assert refused(tmp_path, "'whisper'") == "pretrained"


def test_wrong_weights_for_a_bundle_are_refused(tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    save_file({"x": torch.zeros(1)}, state)
    assert refused("torchaudio:HUBERT_BASE", "weights", state=str(state), layer=1) == "state"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"pretrained": "torchaudio:HUBERT_BASE", "layer": 1}, "needs state"),
        ({"pretrained": "x", "layer": 1, "state": "y"}, "state is for a bundle"),
        ({"pretrained": "x", "layer": 0}, "layer"),
        ({"pretrained": "x"}, "layer"),
        ({"pretrained": "x", "layer": 1, "margin_seconds": 15}, "two margins"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        SslKMeansOptions(**options)
