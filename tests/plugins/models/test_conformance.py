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
#: Stages that are given nothing, or two slices; each family's own tests have them, too.
OTHER_STAGES = [
    Subject("stage_lm", name, SIZE, TINY_STAGES[stage])
    for name in VARIANTS
    for stage in ("first", "third")
]


@parametrize_with_checks(SUBJECTS)
def test_conformance(subject: Subject, check: Check) -> None:
    check(subject)


@pytest.mark.slow
@parametrize_with_checks(OTHER_STAGES)
def test_conformance_of_other_stages(subject: Subject, check: Check) -> None:
    check(subject)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_window_of_attention_keeps_memory_constant(name: str) -> None:
    options = SIZE | {"attention_window": 8}
    subject = Subject("stage_lm", name, options, TINY_STAGES["first"])
    (check,) = (check for check in checks_for("stage_lm") if check.name == "unbounded_is_true")
    assert run_check(check, subject).outcome == "passed"
