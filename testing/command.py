"""Check a registered component or a whole distribution, for `segue plugins check`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from segue.core.discovery import find_plugins, normalised
from segue.core.errors import ConfigError, PluginError
from segue.core.plugins import PluginHost
from segue.core.validation import suggestion
from segue.testing.distribution import check_distribution
from segue.testing.result import ComponentResult


def check_named(
    host: PluginHost, name: str, options: Mapping[str, Any], timeout: float
) -> list[ComponentResult]:
    """Check the component or the installed distribution of this name.

    Args:
        host: knows the components; not asked for a distribution, whose import may never end.
        options: of a component.
        timeout: seconds that a distribution may take to register.

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
    return check_component(host, name, options)


def check_component(
    host: PluginHost, name: str, options: Mapping[str, Any]
) -> list[ComponentResult]:
    """Run every check on a registered component, of whatever kinds the name is.

    Raises:
        PluginError: if it cannot be used.
        ConfigError: if it does not take the options.
    """
    # Imported here: checks of components import torch, those of a distribution must not.
    from segue.testing.check import run_check
    from segue.testing.subject import TINY_STAGES, Subject
    from segue.testing.suite import checks_for

    kinds = sorted({record.kind for record in host.records() if record.name == name})
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
