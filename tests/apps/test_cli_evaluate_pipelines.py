"""`segue evaluate continuations` and `segue evaluate likelihood` on a tiny pipeline."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import soundfile
from tests.apps.conftest import Segue

# --- continuations ----------------------------------------------------------------------------


@pytest.fixture
def common(tiny: Path, recordings_folder: Path) -> tuple[object, ...]:
    """Two recordings of two groups, continued for a moment."""
    return (
        *("evaluate", "continuations", "-p", tiny, "--data", recordings_folder, "--split", "all"),
        *("--items", 2, "--prompt-seconds", 0.5, "--seconds", 0.5),
    )


def test_metrics_that_are_named(segue: Segue, common: tuple[object, ...]) -> None:
    named = "health.v1,frechet.v1:embedding=mel,chroma.v1"
    done = segue(*common, "--metrics", named, "-o", "figures.json", "--json")
    assert (done.code, done.new) == (0, ["figures.json"])
    assert list(done.json["metrics"]) == named.split(",")
    assert done.json["items"] == 2 and done.json["left_out"] == {} and done.json["seed"] == 0
    assert done.json["metrics"]["health.v1"]["healthy"]["count"] == 2
    # Half a second holds no piece of 0.96 s, so that there is no distance.
    distance = done.json["metrics"]["frechet.v1:embedding=mel"]["distance"]
    assert (distance["mean"], distance["count"]) == (None, 0)
    again = segue(*common, "--metrics", named, "--json")
    assert again.json == done.json
    table = segue(*common, "--metrics", "health.v1")
    assert table.code == 0 and "95 % interval" in table.out and "healthy" in table.out


def test_what_is_measured_can_be_listened_to(
    segue: Segue, common: tuple[object, ...], recordings_folder: Path
) -> None:
    done = segue(*common, "--metrics", "health.v1", "--audio", "heard", "--json")
    files = ["heard/001-0.wav", "heard/002-0.wav"]
    assert done.code == 0 and done.new == sorted([*files, *(f"{file}.json" for file in files)])
    told = json.loads(Path(f"{files[1]}.json").read_text())
    assert told["task"] == "continue" and told["prompt_seconds"] == 0.48  # of whole frames
    assert [soundfile.info(file).duration for file in files] == [1.0, 1.0]
    # The prompt's last whole frames come first.
    starts = [soundfile.read(file, 7000, 320)[0] for file in recordings_folder.rglob("0.wav")]
    heard = soundfile.read(files[0], 7000)[0]
    assert min(abs(heard - start).max() for start in starts) < 1e-3
    again = segue(*common, "--audio", "heard")
    assert again.refused("heard:")
    Path("taken").write_text("")
    assert segue(*common, "--audio", "taken").refused("taken")


def test_what_is_missing_is_told_and_the_rest_is_computed(
    segue: Segue, common: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "hama", None)
    for loaded in [name for name in sys.modules if name.startswith("segue.plugins.metrics.phones")]:
        monkeypatch.delitem(sys.modules, loaded)
    done = segue(*common, "--json")
    assert "pip install 'segue[metrics]'" in done.json["left_out"]["phones.v1"]
    assert "healthy" in done.json["metrics"]["health.v1"]
    asked = segue(*common, "--metrics", "phones.v1")
    assert asked.refused("--metrics", "needs the extra 'metrics'", "pip install 'segue[metrics]'")


def test_a_domain_has_its_own_metrics(
    segue: Segue,
    tiny_pipelines: dict[str, Path],
    common: tuple[object, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for slow in ("onnxruntime", "ai_edge_litert"):  # metrics whose networks take long to load
        monkeypatch.setitem(sys.modules, slow, None)
    piano = [tiny_pipelines["piano"] if part == common[3] else part for part in common]
    done = segue(*piano, "--json")
    assert {"chroma.v1", "onsets.v1", "health.v1"} <= set(done.json["metrics"])
    assert not set(done.json["metrics"]) & {"speaker.v1", "phones.v1"}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--metrics", "log_mel.v1"), "--metrics:"),
        (("--metrics", ","), "write --metrics health.v1,speaker.v1"),
        (("--complete", "--seconds", "3000"), "no recording lasts 3000.5 s"),
    ],
)
def test_refusals_of_continuations(
    segue: Segue, common: tuple[object, ...], arguments: tuple[str, ...], problem: str
) -> None:
    assert segue(*common[: -2 if "--seconds" in arguments else None], *arguments).refused(problem)


# --- resynthesis ------------------------------------------------------------------------------


def test_what_is_kept_of_recordings(segue: Segue, tiny: Path, recordings_folder: Path) -> None:
    command = ("evaluate", "resynthesis", "-p", tiny, "--data", recordings_folder)
    few = (*command, "--split", "all", "--items", 1)
    done = segue(*few, "--metrics", "log_mel.v1,health.v1", "-o", "kept.json", "--json")
    assert (done.code, done.new) == (0, ["kept.json"]), done.err
    ways = done.json["ways"]
    # One recording has no other speaker's.
    assert list(ways) == ["acoustic_generation", "semantic", "codec", "recording"]
    assert ways["recording"]["log_mel.v1"]["mean"] == 0 < ways["codec"]["log_mel.v1"]["mean"]
    assert "health.v1 healthy" in ways["codec"]
    some = segue(*few, "--of", "codec", "--metrics", "health.v1", "--json")
    assert segue(*few, "--least-seconds", 999).refused("no recording lasts 999 s")
    assert list(some.json["ways"]) == ["codec"] and "log_mel.v1" not in some.json["ways"]["codec"]
    assert segue(*few, "--of", "speech").refused("--of:")
    assert segue(*few, "--metrics", "nope.v1").refused("--metrics:")


# --- likelihood -------------------------------------------------------------------------------


def test_minimal_pairs_and_spoiled_continuations(
    segue: Segue, tiny: Path, recordings_folder: Path
) -> None:
    rows = "id,filename,correct\n1,group0/0,1\n1,group1/0,0\n2,group2/0.wav,1\n2,group3/0.wav,0\n"
    Path("gold.csv").write_text(rows)
    done = segue(
        *("evaluate", "likelihood", "-p", tiny, "--pairs", "gold.csv"),
        *("--audio", recordings_folder, "--shuffled", recordings_folder, "--split", "all"),
        *("--prompt-seconds", 0.5, "--seconds", 0.5, "--piece-seconds", 0.1, "--json"),
    )
    assert done.code == 0, done.err
    pairs, order = done.json["pairs"], done.json["order"]
    assert pairs["by_mean"]["count"] == 2 and 0 <= pairs["by_mean"]["mean"] <= 1
    assert order["shuffled"]["groups"] == 4 and order["nats"]["mean"] > 0
    assert 0 <= order["foreign"]["mean"] <= 1


def test_refusals_of_likelihood(segue: Segue, tiny: Path, recordings_folder: Path) -> None:
    command = ("evaluate", "likelihood", "-p", tiny)
    assert segue(*command).refused("--data:")
    assert segue(*command, "--pairs", "none.csv").refused("none.csv:")
    done = segue(
        *(*command, "--shuffled", recordings_folder, "--split", "all", "--prompt-seconds", 0.5),
        *("--seconds", 0.5, "--piece-seconds", 0.4),
    )
    assert done.refused("--piece-seconds:")
