"""`segue plugins list | check | install`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from json import loads as parse
from pathlib import Path
from typing import Annotated, Any

import typer

from segue.apps.cli.options import JsonOption, complete_component
from segue.apps.cli.output import console, note, print_json, print_table, warn
from segue.apps.cli.program import Program
from segue.apps.cli.progress import progress_bars
from segue.core.errors import PluginError

app = Program(help="See, check and install plugins.", no_args_is_help=True)


@app.command("list")
def list_(json: JsonOption = False) -> None:
    """List every component that configs can name, and every plugin that is broken or blocked."""
    from dataclasses import asdict

    from segue.core.plugins import default_host

    host = default_host()
    plugins = [
        {
            "source": status.source,
            "entry_point": status.entry_point,
            "state": status.state,
            "error": status.error,
            "components": [f"{record.kind}/{record.name}" for record in status.records],
        }
        for status in host.statuses()
    ]
    _show([asdict(record) for record in host.records()], plugins, json)


def _show(components: list[dict[str, Any]], plugins: list[dict[str, Any]], json: bool) -> None:
    if json:
        print_json({"components": components, "plugins": plugins})
        return
    rows = [(r["kind"], r["name"], r["source"], r["summary"]) for r in components]
    print_table(("kind", "name", "from", "summary"), sorted(rows))
    for plugin in plugins:
        if plugin["state"] != "ok":
            warn(f"{plugin['state']}:", f"{plugin['source']}: {plugin['error']}")


@app.command()
def install(
    sources: Annotated[
        list[str], typer.Argument(help="Packages, as pip takes them: a name, a folder, a wheel.")
    ],
    editable: Annotated[
        bool, typer.Option("--editable", "-e", help="Use a folder in place: edits count at once.")
    ] = False,
    upgrade: Annotated[bool, typer.Option("--upgrade", help="Replace what is installed.")] = False,
    json: JsonOption = False,
) -> None:
    """Install packages with pip into this environment, and show the components that they add.

    Plugins are code that runs with your rights: install those you trust.
    """
    before = _installed()
    for source in sources:
        if (Path(source) / "pyproject.toml").is_file():
            source = str(Path(source).resolve())  # to pip, a bare name is one of PyPI
        _pip("install", *(["--upgrade"] if upgrade else []), *(["-e"] if editable else []), source)
    after = _installed()
    changed = [status for status in after["plugins"] if status not in before["plugins"]]
    names = {status["source"] for status in changed}
    added = [r for r in after["components"] if r["source"] in names]
    if json or changed:
        _show(added, changed, json)
    else:
        these = ", ".join(sources)
        note(f"{these} added no plugin that was not there; `segue plugins list` shows all")
    if any(status["state"] != "ok" for status in changed):
        raise typer.Exit(1)


def _pip(*arguments: str) -> None:
    """Run pip, or uv where there is no pip, on this environment; their output goes to stderr."""
    tool = [sys.executable, "-m", "pip"]
    if find_spec("pip") is None:
        uv = shutil.which("uv")
        if uv is None:
            fix = "run: python -m ensurepip"
            raise PluginError("segue plugins install", "this environment has no pip", fix)
        tool = [uv, "pip", "--python", sys.executable]
    done = subprocess.run([*tool, *arguments], stdout=sys.stderr, check=False)
    if done.returncode:
        fix = "read what pip printed above"
        raise PluginError(arguments[-1], "could not be installed", fix)


def _installed() -> Any:
    """Return the plugins that a new process finds: this one has read its path already."""
    command = [sys.executable, "-m", "segue", "plugins", "list", "--json"]
    return parse(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


@app.command()
def check(
    name: Annotated[
        str,
        typer.Argument(
            help="A component, such as spectral_codec.v1, or an installed package.",
            autocompletion=complete_component,
        ),
    ],
    options: Annotated[
        str, typer.Option("--options", help="Its options as YAML: '{width: 64}'.")
    ] = "{}",
    timeout: Annotated[
        float, typer.Option(min=0.1, max=600, help="Seconds that a package may take to register.")
    ] = 30.0,
    json: JsonOption = False,
) -> None:
    """Check a component against its contract, or how a package registers its plugins.

    A package is registered in a process of its own: that shows whether it imports torch, prints,
    is slow, never ends, or claims names of others.
    """
    from segue.core.errors import ConfigError
    from segue.core.plugins import default_host
    from segue.core.yaml_files import YAML_ERRORS, parse_yaml
    from segue.testing.distribution import check_named

    try:
        values = parse_yaml(options)
    except YAML_ERRORS as error:
        problem = f"{options!r} is not YAML"
        raise ConfigError("--options", problem, "write '{key: value}'") from error
    if not isinstance(values, dict):
        raise ConfigError("--options", f"{options!r} is not a mapping", "write '{key: value}'")
    with progress_bars(json) as progress:
        results = check_named(default_host(), name, values, timeout, progress)
    failed = [result for result in results if result.problem]
    if json:
        print_json([
            {"check": r.name, "passed": not r.problem, "problem": r.problem, "skipped": r.skipped}
            for r in results
        ])  # fmt: skip
    else:
        rows = [
            (r.name, "failed" if r.problem else "skipped" if r.skipped else "ok",
             r.problem or r.skipped)
            for r in results
        ]  # fmt: skip
        print_table(("check", "result", "detail"), rows, title=name)
        skipped = sum(bool(result.skipped) for result in results)
        passed = len(results) - len(failed) - skipped
        console.print(f"{passed} checks passed, {skipped} do not apply, {len(failed)} failed")
    if failed:
        raise typer.Exit(1)
