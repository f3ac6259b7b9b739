"""`segue doctor`: report what this installation can do, and what is wrong with it."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version

import typer

from segue.apps.cli.options import JsonOption
from segue.apps.cli.output import print_json, print_table
from segue.core.errors import SegueError
from segue.inference.threads import thread_troubles

Check = Callable[[], list[tuple[str, str, str]]]

REQUIREMENT = re.compile(r"([\w.-]+).*?(?:extra == ['\"]([\w-]+)['\"])?")
FOR_DEVELOPERS = ("all", "dev", "docs")  # extras


def command(json: JsonOption = False) -> None:
    """Look for what would stop work: packages, devices, formats, plugins, weights."""
    checks = (_packages, _devices, _threads, _kernel, _formats, _plugins, _weights)
    findings = [finding for check in checks for finding in _tried(check)]
    if json:
        print_json([dict(zip(("what", "state", "detail"), row, strict=True)) for row in findings])
    else:
        print_table(("what", "state", "detail"), findings)
    if any(state == "broken" for _, state, _ in findings):
        raise typer.Exit(1)


def _tried(check: Check) -> list[tuple[str, str, str]]:
    """Return what a check found; its own failure is a finding too."""
    try:
        return check()
    except (SegueError, ImportError, OSError) as error:
        what = check.__name__.strip("_")
        return [(what, "broken", " ".join(str(error).split()))]


def _packages() -> list[tuple[str, str, str]]:
    rows = [("python", "ok", f"{platform.python_version()} on {platform.platform()}")]
    groups: dict[str, dict[str, str | None]] = {}
    for line in requires("segue") or ():
        found = REQUIREMENT.fullmatch(line)
        name, extra = found.groups() if found else (line, None)
        if name != "segue" and extra not in FOR_DEVELOPERS:
            groups.setdefault(extra or "", {})[name] = _version(name)
    for name, there in groups.pop("").items():
        rows.append((name, "ok" if there else "broken", there or f"pip install {name}"))
    for extra, packages in groups.items():
        missing = [name for name, there in packages.items() if not there]
        fix = f"{', '.join(missing)}: pip install 'segue[{extra}]'"
        have = ", ".join(f"{name} {there}" for name, there in packages.items())
        rows.append((f"extra {extra}", "missing" if missing else "ok", fix if missing else have))
    return rows


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> list[tuple[str, str, str]]:
    import torch

    rows = [("cpu", "ok", f"threads: {torch.get_num_threads()}")]
    for index in range(torch.cuda.device_count()):
        rows.append((f"cuda:{index}", "ok", torch.cuda.get_device_name(index)))
    return rows


def _threads() -> list[tuple[str, str, str]]:
    return [("threads", "slow", trouble) for trouble in thread_troubles()]


def _kernel() -> list[tuple[str, str, str]]:
    from segue.plugins.layers.native.library import KernelError, library

    what = "decoding kernel"
    try:
        return [(what, "ok", str(library()._name))]
    except KernelError as error:
        return [(what, "missing", f"{error}; decoding on a CPU is slower without it")]


def _formats() -> list[tuple[str, str, str]]:
    import soundfile
    import torchaudio  # noqa: F401  # check that it loads beside this torch

    return [("audio formats", "ok", ", ".join(sorted(soundfile.available_formats())))]


def _plugins() -> list[tuple[str, str, str]]:
    from segue.core.plugins import default_host

    return [
        (f"plugin {s.source}", s.state, s.error or f"{len(s.records)} components")
        for s in default_host().statuses()
    ]


def _weights() -> list[tuple[str, str, str]]:
    from segue.core.config_files import find_domain
    from segue.core.plugins import default_host

    host, rows = default_host(), []
    for name in dict.fromkeys(record.name for record in host.records("domain")):
        try:
            domain = find_domain(name, host)
        except SegueError as error:
            rows.append((f"domain {name}", "broken", str(error)))
            continue
        names = ", ".join(domain.pretrained_names)
        detail = f"{names} in {domain.pretrained}" if names else "has no weights here"
        rows.append((f"domain {name}", "ok" if names else "missing", detail))
    return rows
