"""`segue prepare`, `train`, `tokenize` and `evaluate`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import yaml
from tests.apps.conftest import Segue, tone
from tests.conftest import TINY

from segue.apps.cli.train import _removed_if_unused

SETTINGS = [part for setting in TINY for part in ("--set", setting)]


@pytest.fixture
def trained(tiny: Path) -> Path:
    """The training directory that the tiny pipeline comes from."""
    return tiny.parent


# --- prepare ----------------------------------------------------------------------------------


def test_a_recipe_writes_a_manifest(segue: Segue) -> None:
    Path("source").mkdir()
    rows = [
        "path,corpus,speaker,split,duration_s",
        "a.flac,books,1,train,3",
        "b.flac,books,2,valid,3",
    ]
    Path("source/manifest.csv").write_text("\n".join(rows))
    done = segue("prepare", "speech", "--source", "source", "-o", "data", "--json")
    assert (done.code, done.err) == (0, "")
    assert done.json == {"manifest": "data/manifest.csv"}
    assert "books/1" in Path("data/manifest.csv").read_text()


def test_recipes_that_cannot_run(segue: Segue) -> None:
    Path("file").touch()
    run = ("prepare", "speech", "--source")
    assert segue(*run, "nope", "-o", "data").refused("nope: does not exist; name a folder with")
    assert segue(*run, "nope", "-o", "file").refused("file/manifest.csv:")
    done = segue("prepare", "birds", "--source", "nope", "-o", "data")
    assert done.refused("there is no domain 'birds'; use one of piano, speech")


# --- train and tokenize -----------------------------------------------------------------------


@pytest.mark.slow
def test_a_pipeline_is_trained_by_parts_and_used(
    segue: Segue, recordings_folder: Path, prompt_file: Path
) -> None:
    common = ("-o", "run", "--domain", "speech/baseline", *SETTINGS)
    for part in ("semantic_tokenizer", "codec"):
        done = segue("train", part, *common, "--data", recordings_folder, "--json")
        assert done.code == 0
        assert (Path(done.json["checkpoint"]) / "component.json").is_file()
    done = segue("tokenize", *common, "--data", recordings_folder, "--json")
    assert (done.code, done.json["notes"]) == (0, [])
    assert done.json["train_recordings"] == 6
    done = segue("train", "stages.semantic", *common)
    assert done.code == 0 and "stages.semantic 3/3" in done.out
    done = segue("train", "all", *common, "--data", recordings_folder, "--json")
    assert done.code == 0
    done = segue("continue", prompt_file, "-o", "out.wav", "-p", "run/pipeline", "--seconds", 0.5)
    assert (done.code, done.new) == (0, ["out.wav", "out.wav.json"])


def test_a_plan_counts_the_data_itself(
    segue: Segue, shipped: dict[str, Path], trained: Path, recordings_folder: Path
) -> None:
    """Six recordings of three seconds are learnt from: as audio, and as tokens."""
    plan = ("train", "stages.acoustic", "--plan")
    for where in (("--data", recordings_folder), ("-o", trained), ("--data", trained / "tokens")):
        done = segue(*plan, *where, "--json")
        assert (done.code, done.new) == (0, [])
        assert done.json["hours_of_audio"] == pytest.approx(18 / 3600, rel=0.02)
        (part,) = done.json["parts"]
        assert part["per_epoch"] == pytest.approx(18 * 50 * 3, rel=0.02)
    done = segue(*plan, "--data", recordings_folder, "--hours-of-audio", 100)
    assert "100.00 hours of audio" in done.out and "epochs" in done.out
    assert "epochs" not in segue(*plan).out
    assert segue(*plan, "--data", "nope").refused("nope:")


def test_what_ships_is_trained_anew_and_described_by_nobody(
    segue: Segue, shipped: dict[str, Path], recordings_folder: Path
) -> None:
    run = ("train", "codec", "--domain", "speech", "--data", recordings_folder, "-o", "run")
    done = segue(*run, "--json")
    assert done.code == 0, done.err
    begun = yaml.safe_load(Path("run/config.yaml").read_text())
    shown = yaml.safe_load((shipped["speech"] / "pipeline.yaml").read_text())
    assert begun["codec"].pop("checkpoint", None) is None and shown["codec"].pop("checkpoint")
    assert begun["codec"] == shown["codec"] and begun["codec"]["options"]["width"] == 16
    assert begun["description"] == ""
    other = segue(*run, "--set", "codec.use=soundstream.v1")
    assert other.refused("codec:", "was trained as spectral_codec.v1 in run; go on with --config")
    again = segue("train", "codec", "--config", "run/config.yaml", *run[4:], "--json")
    assert (again.code, again.json) == (0, done.json)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("codec",), "--data:"),
        (("codec", "--data", "nope"), "nope:"),
        (("codec", "--data", "empty"), "empty:"),
        (("nope", "--data", "some"), "nope:"),
        (("stages.acoustic",), "tokens:"),
        (("codec", "--config", "nope", "--domain", "piano"), "name two pipelines; leave one out"),
        (("codec", "--device", "nope"), "device nope:"),
        (("codec", "--set", "codec.training.steps=0"), "codec.training.steps:"),
    ],
)
def test_training_that_cannot_start_leaves_nothing(
    segue: Segue, shipped: dict[str, Path], arguments: tuple[str, ...], problem: str
) -> None:
    Path("empty").mkdir()
    assert segue("train", *arguments, "-o", "runs/mine").refused(problem)
    assert not Path("runs").exists()


def test_a_failed_start_leaves_what_another_one_wrote(place: Path) -> None:
    """Two starts into one new folder: the one that fails must not delete the other's config."""
    with pytest.raises(KeyboardInterrupt), _removed_if_unused(place / "runs" / "mine"):
        (place / "runs" / "mine").mkdir(parents=True)
        (place / "runs" / "mine" / "config.yaml").write_text("name: another's")
        raise KeyboardInterrupt
    assert (place / "runs" / "mine" / "config.yaml").read_text() == "name: another's"
    with pytest.raises(KeyboardInterrupt), _removed_if_unused(place / "new" / "mine"):
        (place / "new" / "mine").mkdir(parents=True)
        raise KeyboardInterrupt
    assert not (place / "new").exists()


def test_training_that_cannot_start_leaves_what_was_there(
    segue: Segue, shipped: dict[str, Path], trained: Path, recordings_folder: Path
) -> None:
    before = sorted(path.name for path in trained.iterdir())
    run = ("train", "codec", "-o", trained, "--data", recordings_folder, "--domain", "speech")
    done = segue(*run, "--set", "codec.options.width=24")
    assert done.refused("codec.options.width:", "trained with 16; ")
    assert sorted(path.name for path in trained.iterdir()) == before


def test_a_file_is_no_training_directory(segue: Segue, recordings_folder: Path) -> None:
    Path("file").touch()
    for arguments in (("train", "codec"), ("tokenize",)):
        done = segue(*arguments, "-o", "file", "--data", recordings_folder)
        assert done.refused("cannot be written (file is a file); choose a place")


def test_processes_share_the_work_on_a_cpu_only(segue: Segue) -> None:
    done = segue("tokenize", "-o", "mine", "--data", "x", "--workers", 2, "--device", "cuda")
    assert done.refused("--workers", "start ranks with torchrun")


def test_tokenizers_must_be_trained(segue: Segue, recordings_folder: Path) -> None:
    done = segue("tokenize", "-o", "runs/mine", "--data", recordings_folder)
    assert done.refused("semantic_tokenizer:", "--set semantic")


def test_recordings_that_cannot_be_used_are_said(segue: Segue, tiny: Path) -> None:
    Path("audio").mkdir()
    soundfile.write("audio/good.wav", tone(1), 16_000)
    soundfile.write("audio/other.wav", tone(1), 16_000)
    soundfile.write("audio/short.wav", tone(0.01), 16_000)
    Path("list.csv").write_text(
        "path,split\naudio/good.wav,train\naudio/short.wav,train\naudio/other.wav,valid\n"
    )
    run = ("tokenize", "-o", "mine", "--config", tiny, "--data", "list.csv")
    done = segue(*run, "--json")
    note = "recordings left out, as they cannot be used: 1; see mine/tokens/problems.csv"
    assert (done.code, done.err) == (0, "")
    assert (done.json["notes"], done.json["train_recordings"]) == ([note], 1)
    again = segue(*run)
    assert again.out == "mine/tokens: 1 training recordings\n" and again.err == f"note: {note}\n"
    Path("audio/talk.m4a").write_bytes(b"of another format")
    done = segue("tokenize", "-o", "other", "--config", tiny, "--data", "audio", "--json")
    (line,) = done.err.splitlines()  # without a place in our code
    assert line.startswith("warning: audio: left out 1, first audio/talk.m4a: "), line


# --- evaluate ---------------------------------------------------------------------------------


def test_continuations_and_likelihood(
    segue: Segue, tiny: Path, trained: Path, recordings_folder: Path
) -> None:
    done = segue(
        *("evaluate", "continuations", "--data", recordings_folder, "-p", tiny, "--items", 1),
        *("--prompt-seconds", 1, "--seconds", 0.5, "--json"),
    )
    assert done.code == 0 and "healthy" in done.json["metrics"]["health.v1"]
    likelihood = ("evaluate", "likelihood", "--data", trained / "tokens", "-p", tiny)
    found = {}
    for split in ("train", "valid"):
        done = segue(*likelihood, "--items", 1, "--split", split, "--json")
        found[split] = done.json["semantic"]["level_0"]["mean"]
    assert found["train"] != found["valid"] and min(found.values()) > 0
    assert segue(*likelihood, "--split", "all").refused("--split:")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("codec", "--data", "nope"), "nope:"),
        (("likelihood", "--data", "empty"), "empty:"),
        (("codec", "--data", "empty", "-o", "empty"), "empty:"),
    ],
)
def test_what_cannot_be_evaluated(
    segue: Segue, tiny: Path, arguments: tuple[str, ...], problem: str
) -> None:
    Path("empty").mkdir()
    assert segue("evaluate", *arguments, "-p", tiny).refused(problem)


@pytest.mark.parametrize("option", ["--seconds", "--prompt-seconds"])
@pytest.mark.parametrize("value", ["nan", "inf", "-1", "0"])
def test_lengths_of_continuations(
    segue: Segue, tiny: Path, recordings_folder: Path, option: str, value: str
) -> None:
    done = segue(
        *("evaluate", "continuations", "--data", recordings_folder, "-p", tiny, option, value)
    )
    assert (done.code, done.out, done.new) == (2, "", [])
    assert option in done.err and "Traceback" not in done.err


@pytest.mark.slow
def test_two_processes_train_all_and_listen_to_each_other(
    tmp_path: Path, recordings_folder: Path, prompt_file: Path, segue: Segue
) -> None:
    """torchrun, gloo: codec, k-means, tokens and stages; the first process alone reports."""
    arguments = ["train", "all", "--domain", "speech/baseline", "--data", str(recordings_folder)]
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *command, "-m", "segue", *arguments, "-o", "run", *SETTINGS],
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("stages.semantic 3/3") == 1
    assert done.stdout.count("all: ") == 1
    assert list(Path("run/codec/tensorboard").iterdir())
    out = segue("continue", prompt_file, "-o", "out.wav", "-p", "run/pipeline", "--seconds", 0.5)
    assert out.code == 0


@pytest.mark.slow
def test_a_stage_is_adapted_to_other_recordings(segue: Segue, tiny: Path) -> None:
    part = "stages.semantic"
    start = ("--config", tiny / "pipeline.yaml", "--set", f"{part}.lm.training.lora.rank=2")
    shutil.copytree(tiny.parent / "tokens", "tuned/tokens")
    done = segue("train", part, "-o", "tuned", *start, "--json")
    assert done.code == 0, done.err
    assert (Path(done.json["checkpoint"]) / "model.safetensors").is_file()
    assert "lora" in Path("tuned/config.yaml").read_text()
