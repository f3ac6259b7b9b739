"""The toy components keep their contracts."""

from __future__ import annotations

import pytest

from segue.core.conformance import TINY_STAGES, Check, Subject, parametrize_with_checks

SUBJECTS = [
    Subject("semantic_tokenizer", "toy_loudness.v1"),
    Subject("codec", "toy_dct.v1"),
    *(
        Subject("stage_lm", "toy_gru.v1", {"width": 16}, stage=stage)
        for stage in TINY_STAGES.values()
    ),
]
pytestmark = pytest.mark.segue_plugins("segue-toy")


@parametrize_with_checks(SUBJECTS)
def test_contract(subject: Subject, check: Check) -> None:
    check(subject)
