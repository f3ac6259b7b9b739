"""Check how an installed distribution registers its plugins, in a process of its own.

What it does at import would otherwise stop or disturb the checks themselves. Imports no torch.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from segue.core.discovery import PLUGINS_VARIABLE, find_plugins
from segue.core.registry import first_party_registry
from segue.testing.result import ComponentResult

#: Seconds that registering may take: every command waits for all plugins.
QUICK = 1.0
SHOWN = 60  # characters of what was printed


def check_distribution(source: str, timeout: float) -> list[ComponentResult]:
    """Register a distribution's plugins and report what they should not do.

    Args:
        source: normalised name of the distribution.
        timeout: seconds after which its process is ended.
    """
    found, printed, problem = _registered(source, timeout)
    quiet = f"prints {printed[:SHOWN]!r} to standard output" if printed else ""
    results = [
        ComponentResult("registers", problem or _broken(found)),
        ComponentResult("prints_nothing", quiet),
    ]
    if problem:
        return results
    names = [f"{kind}/{name}" for kind, name in found["records"]]
    slow, moved = found["seconds"] > QUICK, found["moved_to"]
    problems = {
        "imports_no_torch": "imports torch: import it where a component is built"
        if found["torch"]
        else "",
        "registers_quickly": f"takes {found['seconds']:.1f} s, on every command" if slow else "",
        "stays_in_its_folder": f"changes the working directory to {moved}" if moved else "",
        "claims_names_of_its_own": _claims(source, names, timeout),
        "versions_its_names": _unversioned(names),
    }
    return results + [ComponentResult(name, text) for name, text in problems.items()]


def _registered(source: str, timeout: float) -> tuple[dict[str, Any], str, str]:
    """Return what a process of its own reports, what it printed, and why there is no report."""
    paths = os.pathsep.join(filter(None, sys.path))
    environment = os.environ | {"PYTHONPATH": paths, PLUGINS_VARIABLE: source}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as printed:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "segue.testing.registering", str(report)]
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=printed,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        problem = ""
        try:
            code = process.wait(timeout)
            if not report.is_file():
                problem = f"ends the process that imports it, with exit code {code}"
        except subprocess.TimeoutExpired:
            problem = f"is not done after {timeout:g} s"
            _end(process)
        printed.seek(0)
        text = printed.read().decode(errors="replace")
        found = {} if problem else json.loads(report.read_text(encoding="utf-8"))
    return found, text, problem


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _broken(found: dict[str, Any]) -> str:
    return "; ".join(f"entry point {name}: {error}" for name, error in found["broken"].items())


def _claims(source: str, names: list[str], timeout: float) -> str:
    """Return which names are claimed twice, or by Segue or another installed distribution too."""
    owners = {f"{r.kind}/{r.name}": "Segue's own" for r in first_party_registry().records}
    for other in {status.source for status in find_plugins(everything=True)} - {source}:
        found, _, _ = _registered(other, timeout)
        for kind, name in found.get("records", ()):
            owners.setdefault(f"{kind}/{name}", f"also claimed by {other}")
    twice = [f"{name} is registered twice" for name, count in Counter(names).items() if count > 1]
    taken = [f"{name} is {owners[name]}" for name in dict.fromkeys(names) if name in owners]
    return _listed([*twice, *taken])


def _unversioned(names: list[str]) -> str:
    wrong = [
        name for name in names if not (name.startswith("domain/") or re.search(r"\.v\d+$", name))
    ]
    return f"{_listed(wrong)}: end names in .v1, as checkpoints store them" if wrong else ""


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(texts)
