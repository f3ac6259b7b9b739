"""EnCodec, DAC and Mimi on tiny random models that were saved as real ones are."""

# ruff: noqa: E402 (what comes after importorskip needs the extra)

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")

from segue.core.assembly import assemble
from segue.core.checkpoint import load_component, save_component
from segue.core.config_files import load_config
from segue.core.errors import ConfigError, SegueError
from segue.core.interfaces import Component, Tokens
from segue.core.plugins import default_host
from segue.inference.pipeline import Pipeline
from segue.plugins.layers import hugging_face
from segue.plugins.tokenizers.hf_codecs.model import HfCodec, dac_decode_context
from segue.testing import Check, Subject, parametrize_with_checks, ragged_audio

ENCODEC: dict[str, Any] = {
    "sampling_rate": 800, "hidden_size": 16, "num_filters": 4, "upsampling_ratios": [5, 4, 2],
    "codebook_size": 16, "target_bandwidths": [0.08, 0.4], "num_lstm_layers": 1,
}  # fmt: skip
DAC: dict[str, Any] = {
    "sampling_rate": 800, "encoder_hidden_size": 4, "decoder_hidden_size": 16, "n_codebooks": 4,
    "downsampling_ratios": [2, 5, 4], "codebook_size": 16, "codebook_dim": 4,
    "quantizer_dropout": 1.0,
}  # fmt: skip
MIMI: dict[str, Any] = {
    "sampling_rate": 1000, "hidden_size": 16, "num_filters": 4, "upsampling_ratios": [5, 4, 2],
    "codebook_size": 16, "codebook_dim": 8, "vector_quantization_hidden_dimension": 8,
    "num_quantizers": 5, "num_semantic_quantizers": 2, "upsample_groups": 16,
    "num_hidden_layers": 2, "intermediate_size": 16, "num_attention_heads": 2,
    "num_key_value_heads": 2, "sliding_window": 6, "layer_scale_initial_scale": 0.5,
}  # fmt: skip
TINY = {
    "encodec": (transformers.EncodecConfig, transformers.EncodecModel, ENCODEC),
    "dac": (transformers.DacConfig, transformers.DacModel, DAC),
    "mimi": (transformers.MimiConfig, transformers.MimiModel, MIMI),
}
#: Not all the levels that the tiny models have, but for DAC.
LEVELS = {"encodec": 3, "dac": 4, "mimi": 4}
_FOLDER = tempfile.TemporaryDirectory()  # goes when the process does
names = pytest.mark.parametrize("name", TINY)


def save_tiny(name: str, directory: Path, seed: int = 0, **changes: Any) -> Path:
    """A random model as ``save_pretrained`` writes it."""
    key = f"{name} {seed} {changes}"
    if key not in MADE:
        MADE[key] = tiny_model(name, seed, changes)
    MADE[key].save_pretrained(directory)
    return directory


#: Models that were made: many tests want the same.
MADE: dict[str, Any] = {}


def tiny_model(name: str, seed: int, changes: dict[str, Any]) -> Any:
    config_class, model_class, values = TINY[name]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = model_class(config_class(**(values | changes))).eval()
        wave = ragged_audio([6000], model.config.sampling_rate).wave[None]
        if name == "encodec":
            spread(model.quantizer, model.encoder(wave), "embed")
        if name == "mimi":
            latents = model.encoder(wave)
            latents = getattr(latents, "latents", latents)  # of newer releases
            for part in ("semantic", "acoustic"):
                quantizer = getattr(model.quantizer, f"{part}_residual_vector_quantizer")
                spread(quantizer, quantizer.input_proj(latents), "embed_sum")
            # Random layers are very loud.
            *_, last = (m for m in model.decoder.modules() if isinstance(m, torch.nn.Conv1d))
            last.weight.mul_(0.05)
    return model


def spread(quantizer: Any, latents: Tensor, table: str) -> None:
    """Put codebooks, which are zero in a new model, onto some of the latents ``[1, D, N]``."""
    residual = latents[0].T
    for layer in quantizer.layers:
        book = getattr(layer.codebook, table)
        book.copy_(residual[torch.randperm(len(residual))[: len(book)]])
        residual = residual - layer.codebook.decode(layer.codebook.encode(residual))


@cache
def tiny(name: str) -> Path:
    return save_tiny(name, Path(_FOLDER.name) / name)


def options(name: str, **changes: Any) -> dict[str, Any]:
    return {"pretrained": str(tiny(name)), "num_levels": LEVELS[name]} | changes


def create(name: str, **changes: Any) -> HfCodec:
    codec = default_host().create("codec", f"{name}.v1", options(name, **changes), place="codec")
    assert isinstance(codec, HfCodec)
    return codec.eval()


def subject(name: str) -> Subject:
    def factory(_: object) -> Component:
        return create(name)

    return Subject("codec", factory, label=f"{name}.v1")


def original(name: str) -> Any:
    return TINY[name][1].from_pretrained(tiny(name)).eval()


@parametrize_with_checks([subject("dac")])
def test_conformance(subject: Subject, check: Check) -> None:
    check(subject)


@pytest.mark.slow
@parametrize_with_checks([subject("encodec"), subject("mimi")])
def test_conformance_of_other_codecs(subject: Subject, check: Check) -> None:
    check(subject)


# --- the wrapped model's own codes and audio ------------------------------------------------------


def own_codes(name: str, model: Any, wave: Tensor, size: int) -> Tensor:
    """What the model itself makes of a row: ``[Q, N]`` of all its levels."""
    x = wave[None, None]
    if name == "encodec":
        return model.encode(x, bandwidth=0.4).audio_codes[0, 0]  # type: ignore[no-any-return]
    if name == "dac":  # its feature extractor fills the last frame with zeros
        x = torch.nn.functional.pad(x, (0, -x.shape[2] % size))
    return model.encode(x).audio_codes[0]  # type: ignore[no-any-return]


def own_wave(name: str, model: Any, codes: Tensor) -> Tensor:
    if name == "encodec":
        return model.decode(codes[None, None], [None]).audio_values[0, 0]  # type: ignore[no-any-return]
    wave: Tensor = model.decode(audio_codes=codes[None]).audio_values[0]
    return wave.reshape(-1)


@names
@torch.no_grad()
def test_codes_and_audio_are_the_models_own(name: str) -> None:
    codec, model = create(name), original(name)
    size = codec.spec.frame_size
    audio = ragged_audio([20 * size + 7, 11 * size, 3], codec.spec.sample_rate)
    tokens = codec.encode(audio.wave, audio.lengths)
    assert tokens.lengths.tolist() == [21, 11, 1]
    assert len(tokens.ids.unique()) > 8
    for count in range(1, LEVELS[name] + 1):
        wave = codec.decode(tokens.ids[:, :count], tokens.lengths)
        assert wave.shape == (3, 21 * size)
        for row, (codes, length) in enumerate(zip(tokens.rows(), [21, 11, 1], strict=True)):
            end = int(audio.lengths[row])
            own = own_codes(name, model, audio.wave[row, :end], size)
            assert torch.equal(codes, own[: LEVELS[name]])
            wanted = own_wave(name, model, codes[:count])
            wanted = torch.nn.functional.pad(wanted, (0, length * size - len(wanted)))
            assert torch.equal(wave[row, : length * size], wanted)
            assert wanted.abs().max() > 0


@names
def test_levels_are_those_asked_for_in_any_mode(name: str) -> None:
    full = create(name, num_levels=4)
    audio = ragged_audio([500, 90], full.spec.sample_rate)
    every = full.encode(audio.wave, audio.lengths).ids
    assert every.shape[1] == 4
    for count in (1, 2, 3):
        few = create(name, num_levels=count)
        assert few.spec.num_levels == count
        for mode in (True, False):
            few.train(mode)
            assert few.training is mode and not few.model.training
            assert torch.equal(few.encode(audio.wave, audio.lengths).ids, every[:, :count])


@names
def test_a_batch_may_be_empty_or_hold_empty_rows(name: str) -> None:
    codec = create(name)
    none = codec.encode(torch.zeros(0, 50), torch.zeros(0, dtype=torch.long))
    assert none.ids.shape == (0, LEVELS[name], 0)
    tokens = codec.encode(torch.ones(2, 50), torch.tensor([50, 0]))
    assert tokens.lengths.tolist() == [-(-50 // codec.frame_size), 0]
    assert not codec.decode(tokens.ids, tokens.lengths)[1].any()
    assert codec.decode(tokens.ids[:, :, :0], torch.tensor([0, 0])).shape == (2, 0)


@torch.no_grad()
def test_context_of_dac_is_what_reaches_a_frame() -> None:
    codec = create("dac").double()
    assert codec.decode_context is not None
    left, right = codec.decode_context
    # New weights are so small that what comes through many layers would be rounded away.
    codec.model.decoder.tanh = torch.nn.Identity()
    for tensor in codec.model.decoder.parameters():
        tensor.copy_(torch.randn_like(tensor) * 0.3)
    one = torch.zeros(1, 4, 60, dtype=torch.long)
    other = one.clone()
    other[:, :, 30] = 7
    lengths = torch.tensor([60])
    gap = (codec.decode(one, lengths) - codec.decode(other, lengths)).abs()[0].view(60, -1)
    touched = (gap.amax(dim=1) > 0).nonzero()[:, 0]
    assert touched.min() == 30 - right and touched.max() == 30 + left


@pytest.mark.parametrize(
    ("ratios", "context"), [([8, 8, 4, 2], (10, 10)), ([8, 5, 4, 2], (10, 10))]
)
def test_context_of_released_models(ratios: list[int], context: tuple[int, int]) -> None:
    assert dac_decode_context(ratios) == context


# --- what a source's config says ------------------------------------------------------------------

REAL: list[tuple[str, dict[str, Any], tuple[int, Fraction, int, int]]] = [
    ("encodec", {}, (24_000, Fraction(75), 8, 1024)),
    (
        "encodec",  # MusicGen's
        {"sampling_rate": 32_000, "upsampling_ratios": [8, 5, 4, 4], "codebook_size": 2048,
         "target_bandwidths": [2.2]},
        (32_000, Fraction(50), 4, 2048),
    ),
    ("dac", {"n_codebooks": 12}, (16_000, Fraction(125, 4), 12, 1024)),
    (
        "dac",
        {"sampling_rate": 44_100, "downsampling_ratios": [2, 4, 8, 8]},
        (44_100, Fraction(44_100, 512), 9, 1024),
    ),
    ("mimi", {}, (24_000, Fraction(25, 2), 8, 2048)),
    ("mimi", {"frame_rate": 12.5, "num_quantizers": 4}, (24_000, Fraction(25, 2), 4, 2048)),
]  # fmt: skip


def write_config(directory: Path, **values: Any) -> str:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(values))
    return str(directory)


def spec_of(name: str, directory: str, **changes: Any) -> Any:
    given = {"pretrained": directory} | changes
    return default_host().options("codec", f"{name}.v1", given, "codec.options").spec()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "values", "wanted"), REAL)
def test_spec_is_that_of_the_config(
    name: str, values: dict[str, Any], wanted: tuple[Any, ...], tmp_path: Path
) -> None:
    spec = spec_of(name, write_config(tmp_path, model_type=name, **values))
    assert (spec.sample_rate, spec.frame_rate, spec.num_levels, spec.codebook_size) == wanted


@pytest.mark.parametrize(("name", "values"), [(n, v) for n, v, _ in REAL])
def test_spec_agrees_with_transformers(name: str, values: dict[str, Any], tmp_path: Path) -> None:
    """Also on what it leaves out of a config and derives from the rest."""
    theirs = TINY[name][0](**values)
    theirs.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    for complete in (written, {"model_type": name} | values):
        write_config(tmp_path, **complete)
        total = theirs.n_codebooks if name == "dac" else theirs.num_quantizers
        spec = spec_of(name, str(tmp_path), num_levels=total)
        assert spec.codebook_size == theirs.codebook_size
        if name == "mimi":
            assert spec.frame_rate == Fraction(theirs.frame_rate)
        else:
            assert spec.frame_size == theirs.hop_length
        with pytest.raises(ConfigError, match=str(total)):
            spec_of(name, str(tmp_path), num_levels=total + 1)


def test_spec_needs_neither_torch_nor_weights(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from segue.plugins.tokenizers.hf_codecs.config import MimiOptions\n"
        "print(MimiOptions(pretrained=sys.argv[1]).spec().frame_rate)\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    directory = write_config(tmp_path, model_type="mimi")
    command = [sys.executable, "-c", program, directory]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("25/2", 0), done.stderr


def test_default_levels_are_recorded() -> None:
    codec = create("dac", num_levels=None)
    assert codec.config.num_levels == codec.spec.num_levels == 4


# --- refusals -------------------------------------------------------------------------------------


def refused(name: str, directory: str, **changes: Any) -> SegueError:
    with pytest.raises(SegueError) as caught:
        default_host().create(
            "codec", f"{name}.v1", {"pretrained": directory} | changes, place="codec"
        )
    return caught.value


def test_sources_without_a_readable_config_are_refused(tmp_path: Path) -> None:
    assert refused("dac", str(tmp_path / "gone")).place == "pretrained"
    assert "config.json" in refused("encodec", str(tmp_path)).problem
    for content in ("{", "[]"):
        (tmp_path / "config.json").write_text(content)
        assert "cannot be read" in refused("dac", str(tmp_path)).problem


def test_another_kind_of_codec_is_refused() -> None:
    error = refused("dac", str(tiny("mimi")))
    assert error.place == "pretrained" and "mimi.v1" in error.fix


@names
def test_more_levels_than_there_are_are_refused(name: str) -> None:
    error = refused(name, str(tiny(name)), num_levels=40)
    assert error.place == "num_levels"
    assert "num_levels" in refused(name, str(tiny(name)), num_levels=0).place


@pytest.mark.parametrize(
    ("name", "values", "word"),
    [
        ("encodec", {"audio_channels": 2}, "channels"),
        ("encodec", {"normalize": True, "chunk_length_s": 1.0}, "scales"),
        ("mimi", {"audio_channels": 2}, "channels"),
        ("mimi", {"decoder_config": None}, "decoder"),
    ],
)
def test_variants_that_cannot_be_used_are_refused(
    name: str, values: dict[str, Any], word: str, tmp_path: Path
) -> None:
    error = refused(name, write_config(tmp_path, model_type=name, **values))
    assert error.place == "pretrained" and word in error.problem


def test_missing_and_incomplete_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny("dac"), tmp_path / "copy")
    weights = tmp_path / "copy" / "model.safetensors"
    tensors = load_file(weights)
    del tensors["decoder.conv1.weight"]
    save_file(tensors, weights, {"format": "pt"})
    assert "decoder.conv1.weight" in refused("dac", str(tmp_path / "copy")).problem
    weights.write_bytes(b"nonsense")
    assert "cannot be loaded" in refused("dac", str(tmp_path / "copy")).problem
    weights.unlink()
    assert "model.safetensors" in refused("dac", str(tmp_path / "copy")).problem


def test_a_revision_of_a_directory_is_refused() -> None:
    assert refused("dac", str(tiny("dac")), revision="main").place == "revision"


def test_refusals_say_where_in_the_config_they_belong(tmp_path: Path) -> None:
    overrides = ["codec.use=dac.v1", f"codec.options={{pretrained: {tmp_path}}}"]
    overrides += ["codec.checkpoint=null"]
    config = load_config("speech/acoustic_only", default_host(), overrides).config
    with pytest.raises(ConfigError) as caught:
        assemble(config, default_host())
    assert caught.value.place == "codec.options.pretrained"


# --- fingerprints ---------------------------------------------------------------------------------


@names
def test_fingerprint_is_of_the_content_not_of_the_place(name: str, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny(name), tmp_path / "copy")
    other = save_tiny(name, tmp_path / "other", seed=1)
    prints = [
        create(name, pretrained=str(path)).seal(f"{name}.v1") for path in (tiny(name), copy, other)
    ]
    assert prints[0] == prints[1] != prints[2]
    fewer = create(name, num_levels=2).seal(f"{name}.v1")
    assert fewer != prints[0]


def test_fingerprint_follows_a_config_that_was_edited(tmp_path: Path) -> None:
    copy = shutil.copytree(tiny("encodec"), tmp_path / "copy")
    values = json.loads((copy / "config.json").read_text())
    write_config(copy, **(values | {"pad_mode": "constant"}))
    edited = create("encodec", pretrained=str(copy)).seal("encodec.v1")
    assert edited != create("encodec").seal("encodec.v1")


# --- saved and opened again -----------------------------------------------------------------------


@names
def test_a_saved_codec_is_opened_without_its_source(name: str, tmp_path: Path) -> None:
    shutil.copytree(tiny(name), tmp_path / "source")
    codec = create(name, pretrained=str(tmp_path / "source"))
    audio = ragged_audio([300, 31], codec.spec.sample_rate)
    tokens = codec.encode(audio.wave, audio.lengths)
    (tmp_path / "saved").mkdir()
    save_component(codec, tmp_path / "saved", "codec", f"{name}.v1", {})
    shutil.rmtree(tmp_path / "source")
    loaded = load_component(tmp_path / "saved", default_host(), "codec")
    assert isinstance(loaded, HfCodec)
    assert loaded.spec == codec.spec and loaded.spec.fingerprint
    again = loaded.encode(audio.wave, audio.lengths)
    assert torch.equal(again.ids, tokens.ids)
    made = codec.decode(tokens.ids, tokens.lengths)
    torch.testing.assert_close(loaded.decode(tokens.ids, tokens.lengths), made)


def test_mimi_forgets_its_codebooks_when_others_are_loaded(tmp_path: Path) -> None:
    """Its model keeps what it once computed of them."""
    one, other = create("mimi"), create("mimi", pretrained=str(save_tiny("mimi", tmp_path, 1)))
    codes, lengths = torch.randint(16, (1, 4, 9)), torch.tensor([9])
    before = one.decode(codes, lengths)
    one.load_state_dict(other.state_dict())
    torch.testing.assert_close(one.decode(codes, lengths), other.decode(codes, lengths))
    assert not torch.allclose(one.decode(codes, lengths), before)


STAGE = {
    "name": "all", "predicts": "acoustic", "given": [], "crop_seconds": 1.0,
    "lm": {"use": "flat_transformer.v1", "options": {"size": "tiny"}},
}  # fmt: skip


def test_a_saved_pipeline_needs_no_source(tmp_path: Path) -> None:
    import yaml

    shutil.copytree(tiny("encodec"), tmp_path / "source")
    codec = {"use": "encodec.v1", "options": options("encodec", pretrained=f"{tmp_path}/source")}
    config = {"name": "tiny", "description": "a test", "codec": codec, "stages": [STAGE]}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    host = default_host()
    loaded = load_config(tmp_path / "tiny.yaml", host).config
    pipeline = Pipeline.from_config(loaded, host=host, allow_untrained=True)
    early = pipeline.assembly.streams["acoustic"].fingerprint
    assert pipeline.codec.spec.fingerprint == early != ""
    pipeline.save_pretrained(tmp_path / "saved")
    shutil.rmtree(tmp_path / "source")
    again = Pipeline.from_pretrained(tmp_path / "saved", host=host)
    assert again.codec.spec == pipeline.codec.spec
    codes = Tokens.full(torch.randint(16, (1, 3, 9)))
    assert torch.equal(again.audio.decode(codes), pipeline.audio.decode(codes))


# --- models of the hub ----------------------------------------------------------------------------


@pytest.fixture
def forgetful() -> Any:
    """What one test finds in its cache is not remembered by the next."""
    yield
    hugging_face._hub_config.cache_clear()
    hugging_face._hub_hash.cache_clear()


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgetful: Any) -> Path:
    """The hub's cache with a model in it, and no network."""
    import huggingface_hub.constants as constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "models--someone--tiny-dac"
    shutil.copytree(tiny("dac"), folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder / "snapshots" / commit


def test_a_model_of_the_hub_is_that_of_the_cache(hub_cache: Path) -> None:
    named, local = create("dac", pretrained="someone/tiny-dac"), create("dac")
    assert named.config.pretrained == "someone/tiny-dac"
    assert named.seal("dac.v1") == local.seal("dac.v1")


def test_a_model_that_cannot_be_had_is_refused(hub_cache: Path) -> None:
    assert "someone/else" in refused("dac", "someone/else").problem
    (hub_cache / "model.safetensors").unlink()
    assert "model.safetensors" in refused("dac", "someone/tiny-dac").problem


def test_planning_fetches_the_config_only(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import HfFileMetadata

    expected = hugging_face.Source(str(tiny("dac"))).weights_hash()
    (hub_cache / "model.safetensors").unlink()
    fields = dict.fromkeys(HfFileMetadata.__dataclass_fields__)
    asked: list[str] = []

    def metadata(url: str) -> HfFileMetadata:
        asked.append(url)
        return HfFileMetadata(**(fields | {"etag": expected}))

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    host: Callable[..., Any] = default_host().options
    named = host("codec", "dac.v1", {"pretrained": "someone/tiny-dac"}, "codec.options")
    local = host("codec", "dac.v1", {"pretrained": str(tiny("dac"))}, "codec.options")
    assert named.identity() == local.identity() and named.spec() == local.spec()
    assert len(asked) == 1 and hub_cache.name in asked[0]
