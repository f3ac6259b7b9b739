"""The stage models keep every promise of their contract."""

from __future__ import annotations

from helpers_stage import RELATIVE, SIZE

from segue.testing import TINY_STAGES, Check, Subject, parametrize_with_checks

VARIANTS = {
    "flat_transformer.v1": ({}, RELATIVE, {"given_repeats": "remove"}),
    "delay_transformer.v1": ({}, {"pattern": "flattened"}),
    "depth_transformer.v1": ({}, {"position_encoding": "relative"}),
}
SUBJECTS = [
    Subject("stage_lm", name, SIZE | options, stage, label=f"{name}-{number}-{stage.name}")
    for name, variants in VARIANTS.items()
    for number, options in enumerate(variants)
    for stage in (list(TINY_STAGES.values()) if number == 0 else [TINY_STAGES["second"]])
]


@parametrize_with_checks(SUBJECTS)
def test_conformance(subject: Subject, check: Check) -> None:
    check(subject)
