"""What cannot be used ends in one sentence that names the place and the fix; nothing is written."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from tests.apps.conftest import Segue, tone

from segue.core.domain import Domain
from segue.evaluation import subjects
from segue.inference import detection
from segue.inference.pipeline import Pipeline

Write = Callable[..., Path]
WEIGHTS = "stages/semantic/model.safetensors: heads.weight holds"


# --- prompts ----------------------------------------------------------------------------------


def _nan() -> numpy.ndarray:
    wave = tone(1)
    wave[7] = numpy.nan
    return wave


def _cut_flac(path: Path) -> None:
    soundfile.write(path, tone(1), 16_000, format="FLAC")
    path.write_bytes(path.read_bytes()[:60])


PROMPTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "does not exist; check the path"),
    "empty": (Path.touch, "is an empty file; name a file that holds audio"),
    "text": (lambda path: path.write_text("no audio\n" * 100), "cannot be read as audio"),
    "cut": (_cut_flac, "cannot be read as audio"),
    "no samples": (
        lambda path: soundfile.write(path, numpy.zeros(0), 16_000),
        "holds no sample",
    ),
    "nan": (
        lambda path: soundfile.write(path, _nan(), 16_000, subtype="FLOAT"),
        "holds NaN or infinite samples; repair the file",
    ),
    "short": (
        lambda path: soundfile.write(path, tone(0.1), 16_000),
        "lasts 0.100 s; give at least 0.5 s of audio",
    ),
    "a directory": (Path.mkdir, "is a directory; name one audio file"),
    "a pipe": (os.mkfifo, "is an empty file"),
}


@pytest.mark.parametrize("case", PROMPTS)
def test_prompts(segue: Segue, tiny: Path, case: str) -> None:
    make, problem = PROMPTS[case]
    make(Path("prompt.wav"))
    command = "resynthesize" if case == "missing" else "continue"
    done = segue(command, "prompt.wav", "-o", "new/out.wav", "-p", tiny)
    assert done.refused("error: prompt.wav: ", problem)


@pytest.mark.parametrize(
    "command",
    [
        "continue none.wav",
        "fill none.wav --start 1",
        "resynthesize none.wav",
        "resynthesize none.wav --through sampled",
        "detect none.wav",
        "plot tokens none.wav",
        "evaluate codec --data none.wav",
        "evaluate continuations --data none.wav",
        "evaluate resynthesis --data none.wav",
        "evaluate likelihood --data none.wav",
        "evaluate likelihood --shuffled none.wav",
        "train-detector --data none.wav -o new",
        "continue there.wav -o there.wav/out.wav",
        "plot tokens there.wav -o there.wav/out.png",
        "evaluate continuations --data there.wav --audio there.wav",
    ],
)
def test_files_are_looked_at_before_weights_are_loaded(
    segue: Segue, write: Write, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    write("there.wav", tone(1))
    monkeypatch.setattr(Pipeline, "from_pretrained", pytest.fail)
    monkeypatch.setattr(subjects, "load_tokenizer", pytest.fail)
    monkeypatch.setattr(detection, "load_detector", pytest.fail)
    assert segue(*command.split()).refused("there.wav" if "there" in command else "none.wav: ")


# --- places to write to -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("folder.wav", "folder.wav:"),
        ("file/out.wav", "file/out.wav:"),
        ("/proc/segue/out.wav", "/proc/segue/out.wav:"),
        ("out.txt", "out.txt:"),
        ("out", "out:"),
        ("/dev/null", "/dev/null:"),
        ("taken.wav", "taken.wav.json:"),
        ("a" * 300 + ".wav", "cannot be written (File name too long); choose a place"),
        ("a" * 250 + ".wav", ".json:"),
        ("./file.wav", "file.wav:"),
        ("link.wav", "link.wav:"),
    ],
)
def test_outputs(segue: Segue, tiny: Path, write: Write, name: str, problem: str) -> None:
    for folder in ("folder.wav", "taken.wav.json"):
        Path(folder).mkdir()
    Path("file").touch()
    prompt = write("file.wav", tone(1))
    before = prompt.read_bytes()
    Path("link.wav").symlink_to("file.wav")
    assert segue("continue", prompt, "-o", name, "-p", tiny).refused(problem)
    assert prompt.read_bytes() == before


def test_standard_output_takes_one_result(segue: Segue, tiny: Path) -> None:
    done = segue("generate", "-o", "-", "-p", tiny, "--count", 2)
    assert done.refused("error: --count: needs a file for each result")


def test_of_several_files_each_place_is_checked_first(segue: Segue, tiny: Path) -> None:
    Path("new-3.wav").mkdir()
    done = segue("generate", "-o", "new.wav", "-p", tiny, "--count", 3)
    assert done.refused("new-3.wav:")


@pytest.mark.parametrize(
    ("picture", "problem"),
    [
        ("folder.png", "folder.png:"),
        ("out.jpg", "out.jpg:"),
        ("out.wav", "out.wav:"),
    ],
)
def test_pictures(segue: Segue, tiny: Path, prompt_file: Path, picture: str, problem: str) -> None:
    Path("folder.png").mkdir()
    done = segue("continue", prompt_file, "-o", "out.wav", "-p", tiny, "--picture", picture)
    assert done.refused(problem)


@contextmanager
def full_disk(free: int) -> Iterator[None]:
    """Files may grow to so many bytes only."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("free", "seconds", "problem"),
    # Room for neither; for the audio, but not for its description.
    [(1000, 1, "out.wav:"), (2500, 0.01, "out.wav.json:")],
)
def test_a_full_disk(segue: Segue, tiny: Path, free: int, seconds: float, problem: str) -> None:
    with full_disk(free):
        done = segue("generate", "-o", "out.wav", "-p", tiny, "--seconds", seconds)
    assert done.refused(problem)


def test_a_full_disk_leaves_the_files_that_were_there(segue: Segue, tiny: Path) -> None:
    for name in ("out.wav", "out.wav.json"):
        Path(name).write_text("old")
    with full_disk(1000):
        assert segue("generate", "-o", "out.wav", "-p", tiny, "--seconds", 1).refused("out.wav")
    assert Path("out.wav").read_text() == Path("out.wav.json").read_text() == "old"


def test_an_interrupt_while_writing_leaves_nothing(
    segue: Segue, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(file: object, *_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(soundfile.SoundFile, "write", interrupted)
    done = segue("generate", "-o", "new/out.wav", "-p", tiny, "--seconds", 0.5)
    assert (done.code, done.out) == (130, "")
    assert [name for name in done.new if name != "new"] == []  # the folder alone


def test_what_the_core_did_not_foresee_of_a_disk_is_one_sentence_too(
    segue: Segue, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "/somewhere/tokens")

    monkeypatch.setattr(Pipeline, "run", lost)
    done = segue("generate", "-o", "out.wav", "-p", tiny)
    assert done.refused("/somewhere/tokens:")


# --- values -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--seconds", "0"), "--seconds:"),
        (("--seconds", "-1"), "--seconds:"),
        (("--seconds", "nan"), "--seconds:"),
        (("--seconds", "inf"), "--seconds:"),
        (("--seconds", "1e9"), "--seconds:"),
        (("--seed", "-1"), "--seed:"),
        (("--seed", str(2**70)), "--seed:"),
        (("--prompt-audio", "x"), "--prompt-audio:"),
        (("--set", "a={"), "--set a={:"),
        (("--set", "codex=1"), "codex:"),
        (("--set", "codec.use=nope.v1"), "codec.use:"),
        (("--set", "stages.acoustic.sampling.temperature=-1"), "sampling.temperature:"),
        (("--set", "stages.acoustic.sampling.top_k=x"), "sampling.top_k:"),
        (("--set", "codec.checkpoint=nope"), "nope:"),
    ],
)
def test_values(
    segue: Segue, tiny: Path, prompt_file: Path, options: tuple[str, ...], problem: str
) -> None:
    done = segue("continue", prompt_file, "-o", "new/out.wav", "-p", tiny, *options)
    assert done.refused(problem)


@pytest.mark.parametrize("device", ["nope", "", "meta", "cuda:99", "hpu", "mkldnn", "vulkan"])
def test_devices(segue: Segue, tiny: Path, device: str) -> None:
    done = segue("generate", "-o", "out.wav", "-p", tiny, "--device", device)
    assert done.refused(f"device {device}: cannot be used (", "; use cpu")


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("generate", "--seed", "1", "-o", "x.wav", "--seed", "2"), "--seed"),
        (("generate", "-o", "x.wav", "--output=y.wav"), "--output"),
        (("generate", "-o", "x.wav", "-p", "a", "-p", "a"), "--pipeline"),
        (("evaluate", "codec", "--data", "a", "--data", "b"), "--data"),
        (("--threads", "1", "--threads", "2", "doctor"), "--threads"),
    ],
)
def test_an_option_with_one_value_is_given_once(
    segue: Segue, arguments: tuple[str, ...], option: str
) -> None:
    assert segue(*arguments).refused(f"{option}: is given 2 times; give it once")


def test_a_flag_may_be_given_twice(segue: Segue) -> None:
    assert segue("config", "validate", "speech/baseline", "--json", "--json").code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nope",),
        ("continue",),
        ("continue", "a.wav", "b.wav"),
        ("continue", "a.wav", "--nope"),
        ("generate", "--seconds", "x"),
        ("generate", "--seed", "1.5"),
        ("generate", "--count", "0"),
        ("generate", "--count", "1000000000"),
        ("evaluate", "codec"),
        ("evaluate", "codec", "--data", "x", "--items", "0"),
        ("config",),
        ("plugins", "nope"),
    ],
)
def test_usage(segue: Segue, arguments: tuple[str, ...]) -> None:
    done = segue(*arguments)
    assert (done.code, done.new) == (2, [])
    assert "Traceback" not in done.err
    assert "Usage: segue" in done.err + done.out


# --- pipelines --------------------------------------------------------------------------------


def _cut_weights(folder: Path) -> None:
    path = folder / "stages" / "acoustic" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _weights_of_another(folder: Path) -> None:
    path = folder / "codec" / "model.safetensors"
    state = load_file(path)
    state[next(key for key in state if key.startswith("encoder."))] += 1
    save_file(state, path)


def _links_in_a_circle(folder: Path) -> None:
    shutil.rmtree(folder / "codec")
    (folder / "codec").symlink_to(folder / "codec")


def _weights(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        path = folder / "stages" / "semantic" / "model.safetensors"
        save_file({name: change(value) for name, value in load_file(path).items()}, path)

    return spoil


def _manifest(part: str, **values: object) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        path = folder / part / "component.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return spoil


def _codec_at(place: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        path = folder / "pipeline.yaml"
        path.write_text(path.read_text().replace("checkpoint: codec", f"checkpoint: {place}"))

    return spoil


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no pipeline.yaml": (
        lambda folder: (folder / "pipeline.yaml").unlink(),
        "holds no pipeline.yaml; name a saved pipeline",
    ),
    "bad YAML": (
        lambda folder: (folder / "pipeline.yaml").write_text("codec: ["),
        "pipeline.yaml, line 1:",
    ),
    "no part": (
        lambda folder: shutil.rmtree(folder / "codec"),
        "codec: holds no component.json; name a directory",
    ),
    "cut weights": (_cut_weights, "stages/acoustic/model.safetensors: cannot be read"),
    "weights of another": (_weights_of_another, "codec: weights have fingerprint"),
    "NaN": (_weights(lambda value: value * numpy.nan), f"{WEIGHTS} NaN"),
    "infinite": (_weights(lambda value: value * 1e39), f"{WEIGHTS} infinite numbers"),
    "whole numbers": (_weights(torch.Tensor.long), f"{WEIGHTS} torch.int64"),
    "no stage": (
        _manifest("stages/semantic", stage=None),
        "stages/semantic/component.json: names neither",
    ),
    "no spec": (_manifest("codec", spec=None), "codec/component.json: names neither"),
    "a number for a name": (
        _manifest("codec", distribution=5, version=[1]),
        "codec/component.json: cannot be read (TypeError('distribution is 5'))",
    ),
    "links in a circle": (
        _links_in_a_circle,
        "checkpoint 'codec' cannot be a path (Symlink loop"
        if sys.version_info < (3, 13)  # which finds out when it opens them
        else "codec: holds no component.json",
    ),
    "a long name": (_codec_at("x" * 5000), "...' cannot be a path (File name too long)"),
    "zero in a name": (_codec_at('"a\\0b"'), "checkpoint 'a\\x00b' cannot be a path ("),
}


@pytest.mark.parametrize("case", BROKEN)
def test_pipelines(segue: Segue, tiny: Path, tmp_path: Path, case: str) -> None:
    spoil, problem = BROKEN[case]
    folder = tmp_path / "pipeline"
    shutil.copytree(tiny, folder)
    spoil(folder)
    done = segue("generate", "-o", "out.wav", "-p", folder, "--seconds", 0.5)
    assert done.refused(f"{folder}", problem)


def test_domains(segue: Segue, monkeypatch: pytest.MonkeyPatch) -> None:
    done = segue("generate", "-o", "out.wav", "--domain", "birds")
    assert done.refused("birds:", "piano, speech")
    monkeypatch.setattr(Domain, "pretrained", None)
    done = segue("generate", "-o", "out.wav")
    assert done.refused("speech:")


# --- what is no mistake of the user's ---------------------------------------------------------


def test_too_little_memory_is_said(
    segue: Segue, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(*_: object, **__: object) -> torch.Tensor:
        return torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr(Pipeline, "run", greedy)
    done = segue("generate", "-o", "out.wav", "-p", tiny)
    assert done.refused("memory:")


def test_a_mistake_in_the_code_keeps_its_traceback(
    segue: Segue, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: object, **__: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(Pipeline, "run", wrong)
    with pytest.raises(RuntimeError, match="shapes differ"):
        segue("generate", "-o", "out.wav", "-p", tiny)
