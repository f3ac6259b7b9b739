"""Training a pipeline part by part: workspaces, order, resumption, refusals."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import TINY

from segue.core.checkpoint_files import newest_checkpoint
from segue.core.config_files import load_config
from segue.core.errors import AssemblyError, CheckpointError, DataError, PluginError, TrainingError
from segue.core.hookspecs import hookimpl
from segue.core.plugins import PluginHost
from segue.core.tokens import Tokens
from segue.data.audio_crops import PartCache
from segue.inference.pipeline import Pipeline
from segue.plugins.tokenizers.mel_kmeans.model import MelKMeansTokenizer
from segue.training.saving import STATE
from segue.training.workspace import Workspace, tokenize, train_all, train_part


def fresh_host() -> PluginHost:
    return PluginHost.discover(entry_points=False)


@pytest.fixture
def host() -> PluginHost:
    return fresh_host()


def workspace(directory: Path, data: Path | None, host: PluginHost, *overrides: str) -> Workspace:
    config = load_config("speech/baseline", host, [*TINY, *overrides]).config
    return Workspace(config, directory, data, host)


def test_part_by_part_equals_all_at_once(
    tmp_path: Path, recordings_folder: Path, host: PluginHost
) -> None:
    together = workspace(tmp_path / "a", recordings_folder, host)
    apart = workspace(tmp_path / "b", recordings_folder, host)
    pipeline = train_all(together)
    train_part(apart, "codec")
    train_part(apart, "semantic_tokenizer")
    tokenize(apart)
    train_part(apart, "stages.acoustic")
    train_part(apart, "stages.semantic")
    for part in together.config.parts:
        ours, theirs = (
            newest_checkpoint(space.part_directory(part)) for space in (together, apart)
        )
        assert ours is not None and theirs is not None
        a, b = (load_file(directory / "model.safetensors") for directory in (ours, theirs))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), part
    assert Pipeline.from_pretrained(pipeline, host=host).config.name == "speech-baseline"


def test_a_finished_run_is_left_as_it_is(
    tmp_path: Path, recordings_folder: Path, host: PluginHost
) -> None:
    space = workspace(tmp_path, recordings_folder, host)
    train_all(space)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("**/step-*/model.safetensors")}
    tokens = {p: p.stat().st_mtime_ns for p in tmp_path.glob("tokens/*.safetensors")}
    train_all(space)
    assert before and tokens
    assert before == {p: p.stat().st_mtime_ns for p in before}
    assert tokens == {p: p.stat().st_mtime_ns for p in tokens}


def test_a_stage_refuses_tokens_that_another_codec_made(
    tmp_path: Path, recordings_folder: Path, host: PluginHost
) -> None:
    train_all(workspace(tmp_path, recordings_folder, host))
    retrained = workspace(tmp_path, recordings_folder, host, "codec.training.steps=6")
    train_part(retrained, "codec")
    with pytest.raises(CheckpointError, match=f"delete {tmp_path}/stages/acoustic to train it an"):
        train_all(retrained)
    shutil.rmtree(tmp_path / "stages")
    with pytest.raises(DataError, match="tokenizer"):
        train_part(
            workspace(tmp_path, None, host, "stages.acoustic.lm.training.steps=9"),
            "stages.acoustic",
        )


def test_audio_that_vanishes_ends_a_training_that_goes_on_once_it_is_back(
    tmp_path: Path, recordings_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Thief:
        @hookimpl
        def segue_train_step(self, part: str, step: int, losses: dict[str, float]) -> None:
            if step == 3:
                audio.rename(tmp_path / "away")

    monkeypatch.setattr(PartCache, "put", lambda *part: None)  # what is kept is not missed
    audio = shutil.copytree(recordings_folder, tmp_path / "audio")
    steps = ("codec.training.steps=8", "codec.training.save_every=2")
    whole = train_part(workspace(tmp_path / "whole", audio, fresh_host(), *steps), "codec")
    host = fresh_host()
    host.register(Thief())
    with pytest.raises(DataError) as caught:
        train_part(workspace(tmp_path / "run", audio, host, *steps), "codec")
    assert caught.value.place.startswith(f"{audio}/group")
    (tmp_path / "away").rename(audio)
    last = train_part(workspace(tmp_path / "run", audio, fresh_host(), *steps), "codec")
    for file in ("model.safetensors", STATE):
        assert (last / file).read_bytes() == (whole / file).read_bytes()


def test_too_little_audio_for_the_clusters_is_refused(
    tmp_path: Path, recordings_folder: Path, host: PluginHost
) -> None:
    space = workspace(
        tmp_path, recordings_folder, host, "semantic_tokenizer.options.num_clusters=100000"
    )
    with pytest.raises(TrainingError, match="num_clusters"):
        train_part(space, "semantic_tokenizer")


def test_a_tokenizer_whose_codes_are_illegal_is_not_kept(
    tmp_path: Path, recordings_folder: Path, host: PluginHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = MelKMeansTokenizer.encode

    def beyond(self: MelKMeansTokenizer, wave: torch.Tensor, lengths: torch.Tensor) -> Tokens:
        tokens = encode(self, wave, lengths)
        return Tokens(tokens.ids + self.spec.codebook_size, tokens.lengths)

    monkeypatch.setattr(MelKMeansTokenizer, "encode", beyond)
    space = workspace(tmp_path, recordings_folder, host)
    with pytest.raises(PluginError, match=r"MelKMeansTokenizer .*encode returned the code"):
        train_part(space, "semantic_tokenizer")
    assert newest_checkpoint(space.part_directory("semantic_tokenizer")) is None


class Ear:
    def __init__(self) -> None:
        self.heard: list[tuple[str, int, int, dict[str, torch.Tensor]]] = []

    @hookimpl
    def segue_validation_audio(
        self, part: str, step: int, directory: Path, sample_rate: int, audio: dict[str, Any]
    ) -> None:
        self.heard.append((part, step, sample_rate, audio))


def test_whoever_listens_hears_what_a_stage_makes_of_a_crop(
    tmp_path: Path, tiny_pipelines: dict[str, Path]
) -> None:
    """And changes nothing of what is learnt."""
    changes = ("validate_every=2", "ema=0.5", "steps=4")
    settings = [
        f"stages.{name}.lm.training.{c}" for name in ("acoustic", "semantic") for c in changes
    ]
    ear, ends = Ear(), []
    for listener in (None, ear):
        directory = tmp_path / str(listener is ear)
        shutil.copytree(tiny_pipelines["speech"].parent, directory)
        shutil.rmtree(directory / "stages")
        host = fresh_host()
        if listener is not None:
            host.register(listener)
        space = workspace(directory, None, host, *settings)
        train_part(space, "stages.semantic")
        last = train_part(space, "stages.acoustic")
        ends.append([(last / file).read_bytes() for file in ("model.safetensors", STATE)])
    assert ends[0] == ends[1]
    assert [heard[:3] for heard in ear.heard] == [("stages.acoustic", n, 16_000) for n in (2, 4)]
    audio = ear.heard[-1][3]
    held_out, made = audio["reconstruction"], audio["continuation"]
    assert held_out.shape == made.shape == (2, 32_000)
    assert torch.allclose(held_out[:, :8000], made[:, :8000], atol=1e-5)
    assert not torch.allclose(held_out[:, 16_000:], made[:, 16_000:], atol=1e-3)


def test_training_starts_from_a_checkpoint_that_the_config_names(
    tmp_path: Path, recordings_folder: Path, host: PluginHost
) -> None:
    first = train_part(workspace(tmp_path / "a", recordings_folder, host), "codec")
    tuned = workspace(
        tmp_path / "b", recordings_folder, host, f"codec.checkpoint={first}",
        "codec.training.learning_rate=1e-12", "codec.training.weight_decay=0",
    )  # fmt: skip
    second = train_part(tuned, "codec")
    a, b = (
        load_file(d / "model.safetensors")["encoder.enter.conv.weight"] for d in (first, second)
    )
    assert torch.allclose(a, b, atol=1e-6)


def test_training_starts_from_the_tensors_of_another_component(
    tmp_path: Path, recordings_folder: Path, host: PluginHost
) -> None:
    train_all(workspace(tmp_path / "a", recordings_folder, host))
    source = newest_checkpoint(tmp_path / "a" / "stages" / "acoustic")
    place = "stages.acoustic.lm"
    masked = (
        f"codec.checkpoint={newest_checkpoint(tmp_path / 'a' / 'codec')}",
        f"semantic_tokenizer.checkpoint={newest_checkpoint(tmp_path / 'a' / 'semantic_tokenizer')}",
        f"{place}.use=masked_transformer.v1", f"{place}.options.blocks=transformer",
        f"{place}.training.start_from={source}", f"{place}.training.learning_rate=1e-12",
        f"{place}.training.weight_decay=0",
    )  # fmt: skip
    tiny = [value for value in TINY if value.startswith("stages.acoustic")]
    space, said = workspace(tmp_path / "b", recordings_folder, host, *masked, *tiny), []
    space.say = said.append
    pipeline = train_all(space)
    left = [text.split("stays as", 1)[0] for text in said if "`segue train" in text]
    assert left == ["semantic_tokenizer: ", "codec: "]
    a = load_file(source / "model.safetensors")
    b = load_file(pipeline / "stages" / "acoustic" / "model.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.allclose(a[key], b[key], atol=1e-6) for key in a)
    # Where it started from is no longer said: it may not lie where the pipeline goes.
    assert str(source) not in (pipeline / "pipeline.yaml").read_text()
    both = (masked[0], f"codec.training.start_from={source}")
    with pytest.raises(TrainingError, match=r"start_from"):
        train_part(workspace(tmp_path / "c", recordings_folder, host, *both), "codec")
    fitted = f"semantic_tokenizer.training.start_from={source}"
    with pytest.raises(TrainingError, match=r"start_from"):
        train_part(workspace(tmp_path / "d", recordings_folder, host, fitted), "semantic_tokenizer")


def test_a_stage_learns_from_its_own_guided_draws(
    tmp_path: Path, recordings_folder: Path, host: PluginHost
) -> None:
    """An interrupted training ends as one without a stop; what cannot be learnt from is refused."""
    lm = "stages.acoustic.lm"
    first = workspace(
        tmp_path / "a", recordings_folder, host, f"{lm}.options.condition_dropout=0.5"
    )
    train_all(first)
    parts = {part: newest_checkpoint(first.part_directory(part)) for part in first.config.parts}

    def trained(name: str, *overrides: str) -> Path:
        space = workspace(
            tmp_path / name, recordings_folder, host,
            *(f"{part}.checkpoint={parts[part]}" for part in ("codec", "semantic_tokenizer")),
            f"stages.semantic.lm.checkpoint={parts['stages.semantic']}",
            f"{lm}.training.start_from={parts['stages.acoustic']}", *overrides,
        )  # fmt: skip
        return train_all(space) / "stages" / "acoustic"

    guided = (
        f"{lm}.training.guided={{guidance: 2.0, prompt_guidance: 1.5, prompt_seconds: [0, 1]}}",
        f"{lm}.options.condition_dropout=0.0", f"{lm}.training.schedule=constant",
    )  # fmt: skip
    at_once = load_file(trained("at-once", *guided) / "model.safetensors")
    # What it learnt from may not lie where the pipeline goes: both are no longer said.
    assert "guided" not in (tmp_path / "at-once" / "pipeline" / "pipeline.yaml").read_text()
    trained("stopped", *guided, f"{lm}.training.steps=2")
    resumed = load_file(trained("stopped", *guided) / "model.safetensors")
    assert resumed.keys() == at_once.keys()
    assert all(torch.equal(resumed[name], at_once[name]) for name in resumed)

    tiny = (value for value in TINY if value.startswith("stages.acoustic"))  # `use` drops them
    masked = f"{lm}.use=masked_transformer.v1", f"{lm}.options.blocks=transformer", *tiny
    other = trained("masked", *masked)
    seeing = trained("seeing", f"{lm}.options.condition_dropout=0.0")
    for overrides, problem in (
        (
            (f"{lm}.training.start_from=null",),
            r"training\.guided: is set, but start_from is not; .*--set stages\.acoustic\.lm",
        ),
        ((*masked, *guided, f"{lm}.training.start_from={other}"), "MaskedTransformer cannot learn"),
        ((f"{lm}.training.start_from={other}",), "does not predict the same from the same"),
        ((f"{lm}.training.start_from={seeing}",), r"guided\.guidance: is 2, but .* condition_dr"),
    ):
        with pytest.raises(TrainingError, match=problem):
            trained("refused", *guided, *overrides)


def test_training_that_cannot_start_keeps_the_config_of_the_run(
    tmp_path: Path, recordings_folder: Path, host: PluginHost
) -> None:
    train_part(workspace(tmp_path, recordings_folder, host), "codec")
    before = (tmp_path / "config.yaml").read_text()
    with pytest.raises(DataError):
        train_part(
            workspace(tmp_path, tmp_path / "nowhere", host, "codec.training.steps=9"), "codec"
        )
    halves = ("codec.training.precision=16-mixed", "codec.training.adversary_from=2")
    with pytest.raises(TrainingError, match="two optimizers"):
        train_part(workspace(tmp_path, recordings_folder, host, *halves), "codec")
    assert (tmp_path / "config.yaml").read_text() == before


@pytest.mark.parametrize(
    ("part", "override"),
    [
        ("semantic_tokenizer", "semantic_tokenizer.options.num_clusters=5"),
        ("codec", "codec.options.adversary.stft_channels=5"),
        ("stages.acoustic", "stages.acoustic.lm.options.width=24"),
        ("stages.acoustic", "stages.acoustic.given=[]"),
        ("codec", "codec.options.width=24"),
        ("codec", "codec.training.freeze=[encoder.*]"),
        ("stages.acoustic", "stages.acoustic.lm.training.lora={also_train: [heads.*]}"),
    ],
)
def test_a_training_that_other_options_may_not_resume_keeps_its_config(
    tmp_path: Path, recordings_folder: Path, host: PluginHost, part: str, override: str
) -> None:
    train_all(workspace(tmp_path, recordings_folder, host))
    before = (tmp_path / "config.yaml").read_text()
    changed = workspace(tmp_path, recordings_folder, host, override)
    for start in (train_all, lambda space: train_part(space, part)):
        with pytest.raises((AssemblyError, CheckpointError)) as caught:
            start(changed)
        assert part.rpartition(".")[2] in caught.value.place
        assert re.search("output directory|a new -o", caught.value.fix)
        assert (tmp_path / "config.yaml").read_text() == before
