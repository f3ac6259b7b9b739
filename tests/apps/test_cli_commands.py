"""`segue config`, `plugins` and `doctor`."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from rich.console import Console
from tests.apps.conftest import Segue
from tests.conftest import Install, WriteDistribution
from typer.testing import CliRunner

from segue.apps.cli import doctor, progress
from segue.apps.cli.main import app
from segue.apps.cli.options import Chosen
from segue.apps.cli.output import clear_errors
from segue.core.domain import Domain
from segue.core.plugins import default_host, reset_default_host
from segue.testing import distribution as conformance
from segue.testing.distribution import ComponentResult


def test_the_program_without_its_errors_is_a_plain_typer_app() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert done.exit_code == 0 and done.output.startswith("segue ")
    listed = CliRunner().invoke(app, ["--help"])
    for name in ("continue", "generate", "resynthesize", "train", "evaluate", "plugins", "doctor"):
        assert name in listed.output


# --- config -----------------------------------------------------------------------------------


def test_a_config_is_shown_resolved(segue: Segue) -> None:
    shown = segue("config", "show", "speech", "--set", "codec.training.steps=7")
    tree = yaml.safe_load(shown.out)
    assert (shown.code, shown.err, shown.new) == (0, "", [])
    assert tree["codec"]["training"]["steps"] == 7
    assert tree["codec"]["training"]["weight_decay"] == 0.01  # a default
    assert (
        segue("config", "show", "speech", "--set", "codec.training.steps=7", "--json").json == tree
    )


def test_a_later_value_of_a_key_counts_and_says_so(segue: Segue) -> None:
    values = [f"codec.training.steps={steps}" for steps in (7, 7, 8)]
    shown = segue("config", "show", "speech", *(part for v in values for part in ("--set", v)))
    assert yaml.safe_load(shown.out)["codec"]["training"]["steps"] == 8
    assert shown.err == "note: --set codec.training.steps: 8 replaces 7\n"


def test_what_is_shown_can_be_used(segue: Segue) -> None:
    shown = segue("config", "show", "piano/cascade")
    Path("mine.yaml").write_text(shown.out)
    again = segue("config", "show", "mine.yaml")
    assert (again.code, again.out) == (0, shown.out)


def test_a_config_is_proved(segue: Segue, tiny: Path) -> None:
    done = segue("config", "validate", "speech/baseline")
    assert done.code == 0 and "speech/baseline: valid" in done.out and "acoustic" in done.out
    stages = segue("config", "validate", tiny, "--json").json["stages"]
    assert [stage["stage"] for stage in stages] == ["semantic", "acoustic"]
    assert stages[1]["given"] == ["semantic[0:1]"]
    hole = "stages.acoustic.predicts=acoustic[2:4]"
    assert segue("config", "validate", "speech/baseline", "--set", hole).refused("acoustic")


def test_each_value_is_explained(segue: Segue) -> None:
    Path("mine.yaml").write_text("extends: speech/baseline\nname: mine\n")
    done = segue(
        *("config", "explain", "mine.yaml", "--json", "--set", "stages.acoustic.sampling.top_k=9")
    )
    values = done.json
    assert values["name"] == {"value": "mine", "from": values["name"]["from"]}
    assert values["name"]["from"].endswith("mine.yaml")
    assert values["stages.acoustic.predicts"]["from"].endswith("baseline.yaml")
    assert values["stages.acoustic.sampling.top_k"]["from"].startswith("--set ")
    assert values["codec.training.weight_decay"]["from"] == "default"
    part = segue("config", "explain", "mine.yaml", "stages.acoustic.sampling")
    assert part.code == 0 and "temperature" in part.out and "codec" not in part.out
    nothing = segue("config", "explain", "speech", "stages.fine")
    assert nothing.refused("stages.fine:")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "mine.yaml:"),
        ("", "mine.yaml:"),
        ("a: [", "mine.yaml, line 1:"),
        ("extends: mine.yaml", "mine.yaml"),
        ("extends: speech\nstagess: []", "stagess:"),
        ("extends: speech/huge", "speech/huge:"),
    ],
)
def test_config_files_that_cannot_be_used(segue: Segue, text: str | None, problem: str) -> None:
    if text is not None:
        Path("mine.yaml").write_text(text)
    for command in ("show", "validate", "explain"):
        assert segue("config", command, "mine.yaml").refused(problem)


# --- plugins ----------------------------------------------------------------------------------


def test_components_are_listed(segue: Segue) -> None:
    done = segue("plugins", "list")
    assert (done.code, done.err) == (0, "")
    for name in ("mel_kmeans.v1", "spectral_codec.v1", "flat_transformer.v1", "piano", "si_sdr.v1"):
        assert name in done.out
    listed = segue("plugins", "list", "--json").json
    codecs = {e["name"]: e["source"] for e in listed["components"] if e["kind"] == "codec"}
    assert codecs["spectral_codec.v1"] == codecs["lyra.v2"] == "segue"
    assert listed["plugins"] == []


def test_broken_hooks_are_listed(segue: Segue, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine.yaml").write_text("api_version: 1\nhooks: [no_such_module_anywhere]\n")
    monkeypatch.setenv("SEGUE_REGISTRY", "mine.yaml")
    done = segue("plugins", "list")
    assert done.code == 0 and "spectral_codec.v1" in done.out
    assert done.err.startswith("broken: ") and "no_such_module_anywhere" in done.err
    status = segue("plugins", "list", "--json").json["plugins"][0]
    assert (status["state"], status["components"]) == ("broken", [])
    assert segue("doctor").code == 1


def test_what_a_plugin_fails_at_is_one_line_that_names_it(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("good")
    reset_default_host()
    with pytest.raises(SystemExit) as ended, clear_errors():
        default_host().create("metric", "loudness.v1", {}, place="metric")(None, None, 0)
    assert ended.value.code == 2
    line = " ".join(capsys.readouterr().err.split())
    assert line.startswith("error: segue-good: AttributeError: 'NoneType' object has no attribute")
    assert re.search(
        r"model\.py, line \d+\); leave the plugin out, or report it to segue-good$", line
    )
    with pytest.raises(ZeroDivisionError), clear_errors():  # Segue's own
        1 / 0  # noqa: B018


def test_a_plugin_that_ends_the_process_anywhere_is_named(
    install: Install, write_distribution: WriteDistribution, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_distribution("segue_odd", "import os\ndef end():\n    os._exit(0)\n", "")
    install(folder)
    leave = os._exit
    with pytest.raises(SystemExit) as ended, clear_errors():
        importlib.import_module("segue_odd").end()
    assert ended.value.code == 2 and os._exit is leave
    place = f"{folder / 'segue_odd.py'}, line 3"
    line = " ".join(capsys.readouterr().err.split())
    assert line.startswith(f"error: {place}: ends the command, 'it called os._exit(0)'; ")


def test_a_component_is_checked(segue: Segue, monkeypatch: pytest.MonkeyPatch) -> None:
    done = segue("plugins", "check", "nope.v1")
    assert done.refused("nope.v1:")
    for options, problem in (
        ("{", "--options:"),
        ("[1]", "--options:"),
        ("{widht: 3}", "widht:"),
    ):
        assert segue("plugins", "check", "flat_transformer.v1", "--options", options).refused(
            problem
        )

    Path("segue-registry.yaml").write_text("api_version: 1\nblocked: [codec/spectral_codec.v1]\n")
    monkeypatch.setenv("SEGUE_REGISTRY", "segue-registry.yaml")
    reset_default_host()
    assert segue("plugins", "check", "spectral_codec.v1").refused(
        "spectral_codec.v1: codec/spectral_codec.v1 is blocked by", "segue-registry.yaml"
    )

    given = {}

    def check(host: object, name: str, options: Any, *_: object) -> list[ComponentResult]:
        given[name] = options
        results = [ComponentResult("a"), ComponentResult("b", skipped="no stream")]
        return [*results, ComponentResult("c", problem="drifts")] if options else results

    monkeypatch.setattr(conformance, "check_named", check)
    done = segue("plugins", "check", "toy.v1")
    assert done.code == 0 and "1 checks passed, 1 do not apply, 0 failed" in done.out
    done = segue("plugins", "check", "toy.v1", "--options", "{width: 2}", "--json")
    assert (done.code, given["toy.v1"]) == (1, {"width": 2})
    assert [row["passed"] for row in done.json] == [True, True, False]
    assert done.json[2]["problem"] == "drifts"


# --- doctor -----------------------------------------------------------------------------------


def test_a_domain_that_a_plugin_claims_too_is_reported_once(
    segue: Segue, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = "api_version: 1\nplugins: {domain: {speech: {target: 'elsewhere:DOMAIN'}}}\n"
    Path("mine.yaml").write_text(claim)
    monkeypatch.setenv("SEGUE_REGISTRY", "mine.yaml")
    rows = segue("doctor", "--json").json
    assert [row["what"] for row in rows].count("domain speech") == 1


def test_an_installation_is_looked_at(
    segue: Segue, shipped: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = segue("doctor", "--json")
    assert (done.code, done.err) == (0, "")
    found = {row["what"]: row for row in done.json}
    assert found["torch"]["state"] == found["extra serve"]["state"] == "ok"
    assert {"extra web", "extra hub", "extra metrics"} <= set(found)
    assert "WAV" in found["audio formats"]["detail"]
    assert found["domain piano"] == {
        "what": "domain piano", "state": "ok", "detail": f"piano in {shipped['piano']}"
    }  # fmt: skip
    monkeypatch.setattr(Domain, "pretrained", None)
    done = segue("doctor")
    assert done.code == 0 and "has no weights here" in done.out


def test_what_is_missing_is_found_not_raised(segue: Segue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    lines = ["no-such-package>=1", 'torch; extra == "plot"', 'not-there>=2; extra == "plot"']
    monkeypatch.setattr(doctor, "requires", lambda name: [*lines, 'x; extra == "dev"'])
    Path("mine.yaml").write_text("nonsense: 1")
    monkeypatch.setenv("SEGUE_REGISTRY", "mine.yaml")
    done = segue("doctor", "--json")
    assert done.code == 1
    found = {row["what"]: (row["state"], row["detail"]) for row in json.loads(done.out)}
    assert found["no-such-package"] == ("broken", "pip install no-such-package")
    assert found["extra plot"] == ("missing", "not-there: pip install 'segue[plot]'")
    assert "extra dev" not in found
    assert found["formats"][0] == found["plugins"][0] == found["weights"][0] == "broken"
    assert "mine.yaml" in found["plugins"][1]


# --- completion -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, offered",
    [
        ("segue conti", ["continue"]),
        ("segue continue --domain sp", ["speech", "speech/textless", "speech/three_stage"]),
        ("segue plugins check toy", []),
        ("segue plugins check spectral_c", ["spectral_codec.v1"]),
    ],
)
def test_the_shell_completes_commands_domains_and_components(
    segue: Segue, monkeypatch: pytest.MonkeyPatch, words: str, offered: list[str]
) -> None:
    monkeypatch.setenv("_SEGUE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert segue().out.split() == offered


def test_every_command_that_prints_a_result_can_print_json() -> None:
    without = {"serve", "web", "stream", "config schema"}  # the last prints JSON always
    found = set()

    def visit(node: Any, name: str) -> None:
        for child, command in getattr(node, "commands", {}).items():
            visit(command, f"{name} {child}".strip())
        if not hasattr(node, "commands"):
            found.add(name)
            has = any("--json" in param.opts for param in node.params)
            assert has == (name not in without), name

    visit(typer.main.get_command(app), "")
    assert without < found


# --- progress ---------------------------------------------------------------------------------


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Standard error, as a terminal."""
    text = io.StringIO()
    monkeypatch.setattr(progress, "errors", Console(file=text, force_terminal=True, width=100))
    return text


def test_loading_shows_a_bar_on_a_terminal_and_leaves_nothing(
    tiny: Path, screen: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    Chosen(pipeline=str(tiny)).load()
    assert "loading" in screen.getvalue() and "━" in screen.getvalue()
    assert screen.getvalue().endswith("\x1b[2K")  # the line is cleared
    assert capsys.readouterr() == ("", "")


def test_checks_of_a_plugin_show_a_bar_on_a_terminal(segue: Segue, screen: io.StringIO) -> None:
    done = segue("plugins", "check", "log_mel.v1")
    numbers = re.search(r"(\d+) checks passed, (\d+) do not apply, 0 failed", done.out)
    assert done.code == 0 and numbers is not None
    number = sum(map(int, numbers.groups()))
    assert "checks" in screen.getvalue() and f"{number}/{number}" in screen.getvalue()


def test_elsewhere_work_shows_no_bars(segue: Segue, tiny: Path) -> None:
    done = segue("generate", "-p", tiny, "--seconds", 0.4, "-o", "a.wav")
    assert (done.code, done.err, len(done.out.splitlines())) == (0, "", 1)
