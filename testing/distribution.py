"""Check a registered component or how a whole distribution registers, for `segue plugins check`."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segue.core.discovery import PLUGINS_VARIABLE, find_plugins, normalised
from segue.core.errors import ConfigError, PluginError
from segue.core.plugins import PluginHost
from segue.core.progress import Progress
from segue.core.registry import first_party_registry
from segue.core.validation import suggestion
from segue.inference.threads import survive_forks

if TYPE_CHECKING:
    from segue.testing.check import Check
    from segue.testing.subject import Subject


@dataclass(frozen=True)
class ComponentResult:
    """The outcome of one check."""

    name: str  # of the check; of a stage language model after the stage it was tried with
    problem: str = ""  # the broken promise; empty if the check passed or does not apply
    skipped: str = ""  # why the check does not apply; empty if it was run


#: Seconds that registering may take: every command waits for all plugins.
QUICK = 1.0
SHOWN = 60  # characters of what was printed


def check_distribution(source: str, timeout: float) -> list[ComponentResult]:
    """Register a distribution's plugins within ``timeout`` s; report what they should not do."""
    found, printed, problem = _registered(source, timeout)
    broken = [f"entry point {name}: {why}" for name, why in found.get("broken", {}).items()]
    quiet = f"prints {printed[:SHOWN]!r} to standard output" if printed else ""
    results = [
        ComponentResult("registers", problem or "; ".join(broken)),
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
        "leaves_the_process_as_it_is": f"changes {', '.join(found['changed'])}"
        if found["changed"]
        else "",
        "claims_names_of_its_own": _claims(source, names, timeout),
        "versions_its_names": _unversioned(names),
        "speaks_this_plugin_api": ", ".join(found["foreign"]),
        "uses_nothing_deprecated": "; ".join(dict.fromkeys(found["deprecated"])),
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


def _claims(source: str, names: list[str], timeout: float) -> str:
    """Return which names are claimed twice, or by Segue or another installed distribution too."""
    owners = {f"{r.kind}/{r.name}": "Segue's own" for r in first_party_registry().records}
    for other in {status.source for status in find_plugins(everything=True)} - {source}:
        found, _, _ = _registered(other, timeout)
        for kind, name in found.get("records", ()):
            owners.setdefault(f"{kind}/{name}", f"also claimed by {other}")
    twice = [f"{name} is registered twice" for name, count in Counter(names).items() if count > 1]
    taken = [f"{name} is {owners[name]}" for name in dict.fromkeys(names) if name in owners]
    return ", ".join([*twice, *taken])


def _unversioned(names: list[str]) -> str:
    wrong = [
        name for name in names if not (name.startswith("domain/") or re.search(r"\.v\d+$", name))
    ]
    return f"{', '.join(wrong)}: end names in .v1, as checkpoints store them" if wrong else ""


def check_named(
    host: PluginHost,
    name: str,
    options: Mapping[str, Any],
    timeout: float,
    progress: Progress | None = None,
) -> list[ComponentResult]:
    """Check the component or the installed distribution of this name.

    Args:
        host: knows the components; not asked for a distribution, whose import may never end.
        timeout: seconds that a distribution may take to register.
        progress: called with ``checks``, how many of a component's are done and how many there are.

    Raises:
        PluginError: if there is neither, or the component is blocked.
        ConfigError: if it does not take the options.
    """
    distributions = {status.source for status in find_plugins(everything=True)}
    if normalised(name) in distributions:
        if options:
            problem = f"sets options, but {name} is a distribution"
            raise ConfigError("--options", problem, "leave them out, or name a component")
        return check_distribution(normalised(name), timeout)
    known = {record.name for record in host.records()}
    if name not in known:
        for kind in host.kinds_of(name):
            host.find(kind, name, name)  # it is blocked: raises
        problem = "there is no component and no distribution with plugins of that name"
        raise PluginError(name, problem, suggestion(name, known | distributions))
    return check_component(host, name, options, progress)


def check_component(
    host: PluginHost, name: str, options: Mapping[str, Any], progress: Progress | None = None
) -> list[ComponentResult]:
    """Run every check on a registered component, of whatever kinds the name is.

    Raises:
        PluginError: if it cannot be used.
        ConfigError: if it does not take the options.
    """
    # Imported here: checks of components import torch, those of a distribution must not.
    from segue.testing.subject import TINY_STAGES, Subject
    from segue.testing.suite import checks_for

    kinds = sorted({record.kind for record in host.records() if record.name == name})
    subjects: list[tuple[str, Subject]] = []
    for kind in kinds:
        host.find(kind, name, name)  # if it cannot be used, options are not to blame
        # Validated here, once, so that a wrong value is reported with its path.
        own = host.options(kind, name, options, "options")
        prefix = f"{kind}: " if len(kinds) > 1 else ""
        if kind == "stage_lm":
            subjects += [
                (f"{prefix}{stage.name} stage: ", Subject(kind, name, own, stage, host))
                for stage in TINY_STAGES.values()
            ]
        else:
            subjects.append((prefix, Subject(kind, name, own, host=host)))
    planned = {
        f"{prefix}{check}": (check, subject)
        for prefix, subject in subjects
        for check in checks_for(subject.kind)
    }
    results = []
    for result in _run_apart(planned) if hasattr(os, "fork") else _run(planned):
        results.append(result)
        if progress is not None:
            progress("checks", len(results), len(planned))
    return results


def _run(planned: Mapping[str, tuple[Check, Subject]]) -> Iterator[ComponentResult]:
    from segue.testing.check import run_check

    for name, (check, subject) in planned.items():
        result = run_check(check, subject)
        skipped = result.message if result.outcome == "skipped" else ""
        yield ComponentResult(name, result.message if not result.ok else "", skipped)


def _run_apart(planned: Mapping[str, tuple[Check, Subject]]) -> Iterator[ComponentResult]:
    """Run checks in a forked process; name the one in which compiled code ends it."""
    survive_forks()
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)

    def send() -> None:
        sys.stdout = sys.stderr = sys.__stderr__  # a bar's thread may have held the others' lock
        with suppress(KeyboardInterrupt):  # this process gets it, too
            for result in _run(planned):
                writer.send(result)

    process = context.Process(target=send, daemon=True)
    process.start()
    writer.close()
    for name in planned:
        try:
            yield reader.recv()
        except EOFError:
            process.join()
            problem = f"ends the process, with exit code {process.exitcode}; no check follows"
            yield ComponentResult(name, problem)
            return
    process.join()
