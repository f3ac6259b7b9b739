"""The stage models keep every promise of their contract."""

from __future__ import annotations

import pytest
from helpers_stage import RELATIVE, SIZE

from segue.testing import (
    TINY_STAGES,
    Check,
    Subject,
    checks_for,
    parametrize_with_checks,
    run_check,
)

VARIANTS = {
    "flat_transformer.v1": ({}, RELATIVE, {"given_repeats": "remove", "condition_dropout": 0.1}),
    "delay_transformer.v1": ({}, {"pattern": "flattened"}),
    "depth_transformer.v1": ({}, {"position_encoding": "relative"}),
}
SUBJECTS = [
    Subject("stage_lm", name, SIZE | options, TINY_STAGES["second"], label=f"{name}-{number}")
    for name, variants in VARIANTS.items()
    for number, options in enumerate(variants)
]
PLAIN = [subject for subject in SUBJECTS if subject.label.endswith("-0")]
#: Variants, and stages that are given nothing or two slices: the tests beside this one run every
#: family with them, too.
OTHERS = [subject for subject in SUBJECTS if subject not in PLAIN] + [
    Subject("stage_lm", name, SIZE, TINY_STAGES[stage])
    for name in VARIANTS
    for stage in ("first", "third")
]


@parametrize_with_checks(PLAIN)
def test_conformance(subject: Subject, check: Check) -> None:
    check(subject)


@pytest.mark.slow
@parametrize_with_checks(OTHERS)
def test_conformance_of_others(subject: Subject, check: Check) -> None:
    check(subject)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_window_of_attention_keeps_memory_constant(name: str) -> None:
    options = SIZE | {"attention_window": 8}
    subject = Subject("stage_lm", name, options, TINY_STAGES["first"])
    (check,) = (check for check in checks_for("stage_lm") if check.name == "unbounded_is_true")
    assert run_check(check, subject).outcome == "passed"
