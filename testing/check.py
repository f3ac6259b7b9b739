"""Define a check, how it fails and how it is run."""

from __future__ import annotations

import unittest
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

import torch

from segue.core.discovery import exits_refused
from segue.core.records import Kind
from segue.testing.subject import Subject

Made = TypeVar("Made")
Outcome = Literal["passed", "failed", "skipped", "failed as expected", "passed unexpectedly"]


class ConformanceError(AssertionError):
    """A promise of the contract that the component breaks."""


class NotApplicable(unittest.SkipTest):
    """The check does not apply to this component; pytest and unittest report it as skipped."""


@dataclass(frozen=True)
class Check:
    """One promise of a contract, and the function that tests it.

    Attributes:
        name: unique within its kind; ``expected_failures`` refers to it.
        kind: of the components that it tests.
        function: raises if the subject breaks the promise.
        description: the promise, in one sentence.
    """

    name: str
    kind: Kind
    function: Callable[[Subject], None]
    description: str

    def __call__(self, subject: Subject) -> None:
        """Test a subject; leave torch's random state, grad mode and threads as they were.

        Raises:
            ConformanceError: if the promise is broken; or whatever the component raised.
            NotApplicable: if the check does not apply to this subject.
        """
        mode = torch.set_grad_enabled(torch.is_grad_enabled())
        threads = torch.get_num_threads()
        try:
            with exits_refused(), torch.random.fork_rng(devices=[]), mode:
                torch.manual_seed(0)
                self.function(subject)
        finally:
            torch.set_num_threads(threads)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class CheckResult:
    """The outcome of one check."""

    check: Check
    outcome: Outcome
    message: str = ""

    @property
    def ok(self) -> bool:
        return self.outcome in ("passed", "skipped", "failed as expected")

    def __str__(self) -> str:
        return f"{self.outcome:>19}  {self.check}" + (f": {self.message}" if self.message else "")


def run_check(
    check: Check, subject: Subject, expected_failures: Mapping[str, str] | None = None
) -> CheckResult:
    """Run one check and report its outcome; raise nothing but an interrupt.

    Args:
        expected_failures: name of a check -> why the subject may fail it.
    """
    reason = (expected_failures or {}).get(check.name)
    try:
        check(subject)
    except NotApplicable as skip:
        return CheckResult(check, "skipped", str(skip))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, or a panic of compiled code
        if reason is not None:
            return CheckResult(check, "failed as expected", reason)
        kind = "" if isinstance(error, ConformanceError) else f"{type(error).__name__}: "
        return CheckResult(check, "failed", f"{kind}{error}")
    return CheckResult(check, "passed" if reason is None else "passed unexpectedly")


def require(holds: bool, problem: str) -> None:
    """Fail the running check with this problem unless ``holds``."""
    if not holds:
        raise ConformanceError(problem)


def returned(value: object, kind: type[Made], call: str) -> Made:
    """Return what a component's method returned; require that it is a ``kind``."""
    what = f"{call} returned {type(value).__name__}, not {kind.__name__}"
    require(isinstance(value, kind), what)
    return cast(Made, value)


def made(subject: Subject, contract: type[Made]) -> Made:
    """Return an instance that is ready for use; require that it is what its kind asks for."""
    instance = subject.create()
    is_one = isinstance(instance, contract)
    require(is_one, f"{type(instance).__name__} is not a {contract.__name__}")
    return cast(Made, instance)
