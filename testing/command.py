"""Check a registered component, for `segue plugins check`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from segue.core.errors import PluginError
from segue.core.plugins import PluginHost
from segue.core.validation import suggestion
from segue.testing.check import run_check
from segue.testing.subject import TINY_STAGES, Subject
from segue.testing.suite import checks_for


@dataclass(frozen=True)
class ComponentResult:
    """The outcome of one check.

    Attributes:
        name: of the check; of a stage language model after the stage it was tried with.
        problem: the broken promise; empty if the check passed or does not apply.
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
        PluginError: if there is no such component, or its kind has no checks.
        ConfigError: if it does not take the options.
    """
    records = host.records()
    named = sorted({record.kind for record in records if record.name == name})
    kinds = [kind for kind in named if checks_for(kind)]
    if not kinds:
        known = [record.name for record in records if checks_for(record.kind)]
        raise PluginError(
            name,
            f"is a {named[0]}, a kind without checks" if named else "there is no such component",
            "check a semantic tokenizer, a codec or a stage language model"
            if named
            else suggestion(name, known),
        )
    subjects: list[tuple[str, Subject]] = []
    for kind in kinds:
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
    results = []
    for prefix, subject in subjects:
        for check in checks_for(subject.kind):
            result = run_check(check, subject)
            skipped = result.message if result.outcome == "skipped" else ""
            problem = result.message if not result.ok else ""
            results.append(ComponentResult(f"{prefix}{check}", problem, skipped))
    return results
