"""Gather the checks of a kind of component, and run them under pytest."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any, TypeVar

from segue.core.records import Kind
from segue.testing import (
    codec_checks,
    continuation_checks,
    detector_checks,
    domain_checks,
    generation_checks,
    metric_checks,
    options_checks,
    stage_lm_checks,
    tokenizer_checks,
)
from segue.testing.check import Check
from segue.testing.subject import Subject

F = TypeVar("F", bound=Callable[..., None])

_MODULES: Mapping[str, tuple[ModuleType, ...]] = {
    "semantic_tokenizer": (options_checks, tokenizer_checks),
    "codec": (options_checks, tokenizer_checks, codec_checks),
    "stage_lm": (options_checks, stage_lm_checks, generation_checks),
    "domain": (domain_checks,),
    "metric": (options_checks, metric_checks),
    "continuation_metric": (options_checks, continuation_checks),
    "detector": (options_checks, detector_checks),
}


def checks_for(kind: Kind) -> list[Check]:
    """Return every check for components of this kind."""
    functions = [
        (name.removeprefix("check_"), function)
        for module in _MODULES[kind]
        for name, function in vars(module).items()
        if name.startswith("check_") and function.__module__ == module.__name__
    ]
    # First, before another check has the component change what it should leave alone.
    functions.sort(key=lambda pair: pair[0] != "leaves_the_process_alone")
    return [
        Check(name, kind, function, (inspect.getdoc(function) or "").partition("\n")[0])
        for name, function in functions
    ]


def parametrize_with_checks(
    subjects: Iterable[Subject], expected_failures: Mapping[str, str] | None = None
) -> Callable[[F], F]:
    """Run a test once for each subject and each check for its kind.

    Args:
        subjects: what to check; the test takes ``subject`` and ``check`` and calls
            ``check(subject)``.
        expected_failures: name of a check -> why the subjects fail it. Such a test is reported as
            xfailed, and fails once the check passes, so that the list stays true.

    Raises:
        ValueError: if ``expected_failures`` names no check of any subject.
    """
    import pytest

    expected = dict(expected_failures or {})
    pairs = [(subject, check) for subject in subjects for check in checks_for(subject.kind)]
    unknown = expected.keys() - {check.name for _, check in pairs}
    if unknown:
        raise ValueError(f"no such checks: {', '.join(sorted(unknown))}")
    parameters: list[Any] = []
    for subject, check in pairs:
        reason = expected.get(check.name)
        marks = [] if reason is None else [pytest.mark.xfail(reason=reason, strict=True)]
        parameters.append(pytest.param(subject, check, id=f"{subject}-{check}", marks=marks))
    return pytest.mark.parametrize(("subject", "check"), parameters)
