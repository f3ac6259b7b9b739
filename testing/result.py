"""Hold the outcome of one check, for `segue plugins check`. Imports no torch."""

from dataclasses import dataclass


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
