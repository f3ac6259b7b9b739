"""Does a component keep the promises of its contract? Checks for anyone's plugin.

In a plugin's tests, as with scikit-learn's estimator checks::

    from segue.core.conformance import Check, Subject, parametrize_with_checks

    @parametrize_with_checks([Subject("codec", "my_codec.v1")])
    def test_conformance(subject: Subject, check: Check) -> None:
        check(subject)

Without pytest: ``for check in checks_for(subject.kind): print(run_check(check, subject))``.
"""

from segue.core.conformance.check import (
    Check,
    CheckResult,
    ConformanceError,
    NotApplicable,
    run_check,
)
from segue.core.conformance.kinds import checks_for
from segue.core.conformance.pytest_support import parametrize_with_checks
from segue.core.conformance.stages import TINY_STAGES
from segue.core.conformance.subject import Subject
from segue.core.conformance.synthetic import fit_on_synthetic, ragged_audio

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
