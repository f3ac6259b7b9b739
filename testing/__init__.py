"""Check that a component keeps the promises of its contract. For anyone's plugin.

In a plugin's tests, as with scikit-learn's estimator checks::

    from segue.testing import Check, Subject, parametrize_with_checks

    @parametrize_with_checks([Subject("codec", "my_codec.v1")])
    def test_conformance(subject: Subject, check: Check) -> None:
        check(subject)

Without pytest: ``for check in checks_for(subject.kind): print(run_check(check, subject))``.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segue.testing.check import Check, CheckResult, ConformanceError, NotApplicable, run_check
    from segue.testing.subject import TINY_STAGES, Subject
    from segue.testing.suite import checks_for, parametrize_with_checks
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


def __getattr__(name: str) -> object:
    """Import on demand: pytest loads ``segue.testing.pytest_plugin`` in runs without torch."""
    if name in __all__:
        for home in ("check", "subject", "suite", "synthetic"):
            module = import_module(f"segue.testing.{home}")
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
