"""The stage models keep every promise of their contract."""

from __future__ import annotations

import pytest
from helpers_stage import MODELS, SIZE, STAGES, quickly

from segue.testing import (
    TINY_STAGES,
    Check,
    Subject,
    checks_for,
    parametrize_with_checks,
    run_check,
)

FAMILIES = ("flat", "delay", "depth")


def subject(kind: str, stage: str = "second", **more: object) -> Subject:
    family, options = MODELS[kind]
    known = {**TINY_STAGES, **STAGES}[stage]
    name = f"{family}_transformer.v1"
    return Subject("stage_lm", name, SIZE | options | more, known, label=f"{kind}-{stage}")


PLAIN = [subject(kind) for kind in FAMILIES]
OTHERS = [subject(kind, condition_dropout=0.1) for kind in MODELS if kind not in FAMILIES]
OTHERS += [subject(kind, stage) for kind in FAMILIES for stage in ("first", "third", "faster")]


@parametrize_with_checks(PLAIN)
def test_conformance(subject: Subject, check: Check) -> None:
    check(subject)


@quickly(OTHERS)
def test_scores_and_draws_of_others(subject: Subject, check: Check) -> None:
    check(subject)


@pytest.mark.slow
@parametrize_with_checks(OTHERS)
def test_conformance_of_others(subject: Subject, check: Check) -> None:
    check(subject)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_window_of_attention_keeps_memory_constant(kind: str) -> None:
    (check,) = (check for check in checks_for("stage_lm") if check.name == "unbounded_is_true")
    assert run_check(check, subject(kind, "first", attention_window=8)).outcome == "passed"
