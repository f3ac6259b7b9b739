"""`segue new-plugin` and `segue plugins install`."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.apps.conftest import Segue
from tests.core.test_third_party import _describe

from segue.apps.cli import plugins
from segue.apps.cli.new_plugin import KINDS
from segue.core.plugins import PluginHost


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_is_registered_under_its_name(
    segue: Segue, place: Path, install: Callable[..., None], kind: str
) -> None:
    done = segue("new-plugin", "segue-own.thing", "--kind", kind, "-o", "new/mine")
    assert done.code == 0 and "segue plugins check segue_own_thing.v1" in done.out
    assert "next: segue plugins install -e ./new/mine;" in done.out
    package = place / "new" / "mine"
    for path in package.rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert (
                not any(word in text.lower() for word in ("toy", "loudnessopt", "mdctopt", "$"))
                or path.name == "README.md"
            )
            if path.suffix == ".py":
                compile(text, str(path), "exec")
    assert (
        'segue_own_thing = "segue_own_thing.register"' in (package / "pyproject.toml").read_text()
    )
    _describe(package / "src", "segue_own_thing", "segue_own_thing.register")
    install(package / "src")
    host = PluginHost.discover()
    (record,) = [record for record in host.records() if record.source == "segue-own-thing"]
    assert (record.kind, record.name) == (kind, "segue_own_thing.v1")
    options = host.options(kind, record.name, {}, "options")
    assert type(options).__name__ == "SegueOwnThingOptions"
    assert host.load(record, "options").__name__.startswith("SegueOwnThing")


def test_what_cannot_be_made_is_refused(segue: Segue, place: Path) -> None:
    assert segue("new-plugin", "Bad Name").refused("NAME", "small letters")
    assert segue("new-plugin", "class").refused("NAME")
    assert segue("new-plugin", "mimi").refused("NAME: mimi.v1 is a codec of segue already; choose")
    assert segue("new-plugin", "mimi", "--kind", "stage_lm").code == 0
    assert segue("new-plugin", "json").refused("there is a package 'json' already")
    assert segue("new-plugin", "mine-x", "--kind", "domain").refused("--kind", "stage_lm")
    (place / "mine-x").mkdir()
    (place / "mine-x" / "file").touch()
    assert segue("new-plugin", "mine-x").refused("mine-x: exists already", "--output")


def test_the_next_step_of_a_new_plugin_installs_its_folder_and_nothing_of_that_name_from_afar(
    segue: Segue, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(plugins, "_installed", lambda: {"components": [], "plugins": []})
    monkeypatch.setattr(plugins, "_pip", lambda *arguments: asked.append(arguments))
    step = segue("new-plugin", "my-thing").out.partition("next: segue ")[2].partition(";")[0]
    segue(*step.split())
    assert asked == [("install", "-e", str(place.resolve() / "my-thing"))]


def test_an_installation_shows_what_it_added(segue: Segue, monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"kind": "codec", "name": "x.v1", "source": "x", "summary": "new"}
    ok: dict[str, Any] = {"source": "x", "state": "ok", "error": ""}
    bad = ok | {"source": "y", "state": "broken", "error": "no module"}
    none: dict[str, Any] = {"components": [], "plugins": []}
    found = iter([none, {"components": [record], "plugins": [ok]}, none, none, none,
                  {"components": [], "plugins": [bad]}])  # fmt: skip
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(plugins, "_installed", lambda: next(found))
    monkeypatch.setattr(plugins, "_pip", lambda *arguments: asked.append(arguments))
    done = segue("plugins", "install", "./x", "-e", "--json")
    assert (done.code, done.json["components"], asked) == (0, [record], [("install", "-e", "./x")])
    again = segue("plugins", "install", "numpy")
    assert "numpy added no plugin that was not there" in again.err and not again.out
    done = segue("plugins", "install", "y")
    assert done.code == 1 and "broken: y: no module" in done.err


@pytest.mark.slow
@pytest.mark.segue_not_isolated
def test_new_plugins_pass_their_checks_where_they_are_installed(tmp_path: Path) -> None:
    """In an environment of its own, which sees this one's packages."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    base = sysconfig.get_paths()["purelib"]
    own = next((tmp_path / "venv" / "lib").glob("python*")) / "site-packages"
    (own / "base.pth").write_text(f"import site; site.addsitedir({base!r})\n")
    environment = os.environ | {"PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0"}

    def run(*command: str) -> str:
        done = subprocess.run(
            [python, "-m", *command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    for kind in KINDS:
        name = f"new-{kind.replace('_', '-')}"
        run("segue", "new-plugin", name, "--kind", kind)
        added = json.loads(run("segue", "plugins", "install", "-e", f"./{name}", "--json"))
        component = f"{name.replace('-', '_')}.v1"
        assert [(r["kind"], r["name"]) for r in added["components"]] == [(kind, component)]
        checks = json.loads(run("segue", "plugins", "check", component, "--json"))
        assert all(check["passed"] for check in checks) and len(checks) > 10
    assert " passed" in run("pytest", "-q", "-p", "no:cacheprovider", "new-codec")
