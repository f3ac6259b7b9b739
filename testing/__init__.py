"""Does a component keep the promises of its contract? Checks for anyone's plugin.

In a plugin's tests, as with scikit-learn's estimator checks::

    from segue.testing import Check, Subject, parametrize_with_checks

    @parametrize_with_checks([Subject("codec", "my_codec.v1")])
    def test_conformance(subject: Subject, check: Check) -> None:
        check(subject)

Without pytest: ``for check in checks_for(subject.kind): print(run_check(check, subject))``.
"""

from segue.testing.check import (
    Check,
    CheckResult,
    ConformanceError,
    NotApplicable,
    run_check,
)
from segue.testing.kinds import checks_for
from segue.testing.pytest_support import parametrize_with_checks
from segue.testing.stages import TINY_STAGES
from segue.testing.subject import Subject
from segue.testing.synthetic import fit_on_synthetic, ragged_audio

__all__ = [
    "TINY_STAGES",
    "Check",
    "CheckResult",
    "ConformanceError",
    "NotApplicable",
    "Subject",
    "checks_for",
    "fit_on_synthetic",
    "parametrize_with_checks",
    "ragged_audio",
    "run_check",
]
