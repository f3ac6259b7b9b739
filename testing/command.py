"""What `segue plugins check` runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from segue.core.errors import PluginError
from segue.core.manager import PluginHost
from segue.core.records import Kind
from segue.core.validation import suggestion
from segue.testing.check import run_check
from segue.testing.kinds import checks_for
from segue.testing.stages import TINY_STAGES
from segue.testing.subject import Subject


@dataclass(frozen=True)
class ComponentResult:
    """What became of one check.

    Attributes:
        name: of the check; for a stage language model after the stage it was tried with.
        problem: what is wrong; empty if the check passed or does not apply.
        skipped: why the check does not apply; empty if it was run.
    """

    name: str
    problem: str = ""
    skipped: str = ""


def check_component(
    host: PluginHost, name: str, options: Mapping[str, Any]
) -> list[ComponentResult]:
    """Run every check on a registered component.

    Raises:
        PluginError: if there is no such component, or none of a kind that has checks.
        ConfigError: if it does not take the options.
    """
    results = []
    for subject, prefix in _subjects(host, name, options):
        for check in checks_for(subject.kind):
            result = run_check(check, subject)
            skipped = result.message if result.outcome == "skipped" else ""
            problem = result.message if not result.ok else ""
            results.append(ComponentResult(f"{prefix}{check}", problem, skipped))
    return results


def _subjects(
    host: PluginHost, name: str, options: Mapping[str, Any]
) -> Iterator[tuple[Subject, str]]:
    """What to check, and what to put before the names of its checks."""
    kinds = _kinds(host, name)
    for kind in kinds:
        # Refused here, with the path of the wrong value, rather than by every check.
        own = host.options(kind, name, options, "options")
        prefix = f"{kind}: " if len(kinds) > 1 else ""
        if kind != "stage_lm":
            yield Subject(kind, name, own, host=host), prefix
            continue
        for stage in TINY_STAGES.values():
            yield Subject(kind, name, own, stage, host), f"{prefix}{stage.name} stage: "


def _kinds(host: PluginHost, name: str) -> list[Kind]:
    """The kinds with checks of which there is a component of this name."""
    records = [record for record in host.records() if checks_for(record.kind)]
    kinds = sorted({record.kind for record in records if record.name == name})
    if not kinds:
        raise PluginError(
            name,
            "no semantic tokenizer, codec or stage language model has this name",
            suggestion(name, (record.name for record in records)),
        )
    return kinds
