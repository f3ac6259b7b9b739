"""Which checks there are for which kind of component."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from segue.core.records import Kind
from segue.testing import (
    codec_checks,
    generation_checks,
    learning_checks,
    options_checks,
    stage_lm_checks,
    tokenizer_checks,
    tokenizer_state_checks,
)
from segue.testing.check import Check
from segue.testing.subject import Subject

Function = Callable[[Subject], None]

_TOKENIZER: tuple[Function, ...] = (
    *options_checks.CHECKS,
    *tokenizer_checks.CHECKS,
    *tokenizer_state_checks.CHECKS,
)
_FUNCTIONS: Mapping[Kind, tuple[Function, ...]] = {
    "semantic_tokenizer": (*_TOKENIZER, *tokenizer_checks.SEMANTIC_CHECKS),
    "codec": (*_TOKENIZER, *codec_checks.CHECKS),
    "stage_lm": (
        *options_checks.CHECKS,
        *stage_lm_checks.CHECKS,
        *learning_checks.CHECKS,
        *generation_checks.CHECKS,
    ),
}


def checks_for(kind: Kind) -> list[Check]:
    """Every check for components of this kind; none for kinds without a contract to test."""
    return [
        Check(
            function.__name__.removeprefix("check_"),
            kind,
            function,
            (inspect.getdoc(function) or "").partition("\n")[0],
        )
        for function in _FUNCTIONS.get(kind, ())
    ]
