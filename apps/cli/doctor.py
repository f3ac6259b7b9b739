"""`segue doctor`: what this installation can do, and what is wrong with it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import typer

from segue.apps.cli.options import JsonOption
from segue.apps.cli.output import print_json, print_table

PACKAGES = {
    "torch": "",
    "torchaudio": "",
    "soundfile": "",
    "scikit-learn": "train",
    "matplotlib": "plot",
}


def command(json: JsonOption = False) -> None:
    """Look for what would stop work: packages, devices, formats, plugins, weights."""
    findings = [*_packages(), *_devices(), *_formats(), *_plugins(), *_weights()]
    if json:
        print_json([dict(zip(("what", "state", "detail"), row, strict=True)) for row in findings])
    else:
        print_table(("what", "state", "detail"), findings)
    if any(state == "broken" for _, state, _ in findings):
        raise typer.Exit(1)


def _packages() -> list[tuple[str, str, str]]:
    rows = [("python", "ok", f"{platform.python_version()} on {platform.platform()}")]
    for name, extra in PACKAGES.items():
        try:
            rows.append((name, "ok", version(name)))
        except PackageNotFoundError:
            state = "missing" if extra else "broken"
            wanted = f"segue[{extra}]" if extra else name
            rows.append((name, state, f"pip install '{wanted}'"))
    return rows


def _devices() -> list[tuple[str, str, str]]:
    import torch

    rows = [("cpu", "ok", f"{torch.get_num_threads()} threads")]
    for index in range(torch.cuda.device_count()):
        rows.append((f"cuda:{index}", "ok", torch.cuda.get_device_name(index)))
    return rows


def _formats() -> list[tuple[str, str, str]]:
    try:
        import soundfile
        import torchaudio  # noqa: F401  # it must load beside this torch

        formats = ", ".join(sorted(soundfile.available_formats()))
    except (ImportError, OSError) as error:
        return [("audio", "broken", str(error).splitlines()[0])]
    return [("audio formats", "ok", formats)]


def _plugins() -> list[tuple[str, str, str]]:
    from segue.core.manager import default_host

    states = {"ok": "ok", "blocked": "blocked", "broken": "broken"}
    return [
        (f"plugin {status.source}", states[status.state], status.error or _names(status))
        for status in default_host().statuses()
    ]


def _names(status: Any) -> str:
    return f"{len(status.records)} components"


def _weights() -> list[tuple[str, str, str]]:
    from segue.core.config.load import find_domain
    from segue.core.errors import SegueError
    from segue.core.manager import default_host

    host, rows = default_host(), []
    for record in host.records("domain"):
        try:
            directory = find_domain(record.name, host).pretrained
        except SegueError as error:
            rows.append((f"domain {record.name}", "broken", str(error)))
            continue
        detail = str(directory) if directory else "ships no weights here"
        rows.append((f"domain {record.name}", "ok" if directory else "missing", detail))
    return rows
