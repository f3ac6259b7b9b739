"""Run the checks under pytest, which is imported only when a test module asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from segue.testing.kinds import checks_for
from segue.testing.subject import Subject

F = TypeVar("F", bound=Callable[..., None])


def parametrize_with_checks(
    subjects: Iterable[Subject], expected_failures: Mapping[str, str] | None = None
) -> Callable[[F], F]:
    """Run a test once for each subject and each check for its kind.

    Args:
        subjects: what to check; the test takes ``subject`` and ``check`` and calls
            ``check(subject)``.
        expected_failures: name of a check → why the subjects fail it. Such a test is reported as
            xfailed, and fails once the check passes, so that the list stays true.

    Raises:
        ValueError: if ``expected_failures`` names no check of any subject.
    """
    import pytest

    expected = dict(expected_failures or {})
    parameters: list[Any] = []
    known: set[str] = set()
    for subject in subjects:
        for check in checks_for(subject.kind):
            known.add(check.name)
            reason = expected.get(check.name)
            marks = [] if reason is None else [pytest.mark.xfail(reason=reason, strict=True)]
            label = f"{subject}-{check}"
            parameters.append(pytest.param(subject, check, id=label, marks=marks))
    if not expected.keys() <= known:
        raise ValueError(f"no such checks: {', '.join(sorted(expected.keys() - known))}")
    decorator: Callable[[F], F] = pytest.mark.parametrize(("subject", "check"), parameters)
    return decorator
