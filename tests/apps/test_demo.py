"""`make demo`: a WAV, a picture and figures for each prompt, and a table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
from tests.apps.conftest import Finished, Segue, tone

from segue.apps import demo
from segue.core.domain import Domain

pytest.importorskip("matplotlib")

Demo = Callable[..., Finished]
COLUMNS = ("domain", "prompt", "seconds generated", "real-time factor", "seed", "checkpoint")


@pytest.fixture
def run_demo(segue: Segue) -> Demo:
    def run(*arguments: object) -> Finished:
        return segue("--output", "out", *arguments, program=demo.main)

    return run


def rows() -> Any:
    return json.loads(Path("out/demo.json").read_text(encoding="utf-8"))


def test_both_domains_continue_their_shipped_prompts(
    run_demo: Demo, shipped: dict[str, Path]
) -> None:
    done = run_demo("--seconds", 1, "--seed", 5)
    assert done.code == 0
    files = [
        f"out/{name}.{end}" for name in ("piano", "speech") for end in ("png", "wav", "wav.json")
    ]
    assert done.new == sorted([*files, "out/demo.json"])
    for row, name in zip(rows(), ("speech", "piano"), strict=True):
        assert tuple(row)[: len(COLUMNS)] == COLUMNS
        assert (row["domain"], row["seed"], row["checkpoint"]) == (name, 5, str(shipped[name]))
        assert Path(row["prompt"]).name == "prompt.flac"
        assert row["seconds generated"] == pytest.approx(1, abs=0.1)
        assert row["real-time factor"] == pytest.approx(
            row["seconds generated"] / row["elapsed_seconds"], rel=0.2
        )
        wav, picture = Path(row["output"]), Path(row["picture"])
        assert soundfile.info(wav).duration == pytest.approx(5, abs=0.1)  # 4 s of prompt
        assert picture.read_bytes().startswith(b"\x89PNG")
        facts = json.loads(Path(row["metadata"]).read_text(encoding="utf-8"))
        assert facts["seed"] == 5 and facts["pipeline"] == name
    for column in COLUMNS:
        assert column in done.out
    assert "out/speech.wav" in done.out and str(rows()[0]["real-time factor"]) in done.out
    assert "weights:" in done.out


def test_a_prompt_of_ones_own(run_demo: Demo, shipped: dict[str, Path], place: Path) -> None:
    soundfile.write(place / "mine.wav", tone(5, 8000, channels=2), 8000)
    done = run_demo("--prompt", "mine.wav", "--domain", "piano", "--seconds", 0.5)
    assert done.code == 0
    assert [(row["domain"], row["prompt"]) for row in rows()] == [("piano", "mine.wav")]
    notes = json.loads(Path("out/piano.wav.json").read_text())["notes"]
    assert notes[:2] == ["used the first 4.0 s of 5.0 s", "mixed 2 channels to mono"]
    for note in notes:
        assert f"note: piano: {note}" in done.err
    done = run_demo("--prompt", "mine.wav", "--seconds", 0.5)
    assert [row["domain"] for row in rows()] == ["speech"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--prompt", "nope.wav"), "nope.wav:"),
        (("--prompt", "short.wav"), "short.wav:"),
        (("--domain", "birds"), "there is no domain 'birds'; use one of piano, speech"),
        (("--seconds", "0"), "--seconds:"),
        (("--seed", "-1"), "--seed:"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    run_demo: Demo, shipped: dict[str, Path], options: tuple[str, ...], problem: str
) -> None:
    soundfile.write("short.wav", tone(0.1), 16_000)
    assert run_demo(*options).refused(problem)


def test_places_that_cannot_be_written(run_demo: Demo, shipped: dict[str, Path]) -> None:
    Path("out").touch()
    assert run_demo().refused("out/speech.wav:")
    Path("out").unlink()
    Path("out/demo.json").mkdir(parents=True)
    assert run_demo().refused("out/demo.json:")


def test_without_weights_the_demo_says_how_to_train(
    run_demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Domain, "pretrained", None)
    assert run_demo().refused("speech:")
