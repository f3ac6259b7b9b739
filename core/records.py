"""Describe what a plugin offers by strings, so that registering imports no implementation."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, StrictInt
from pydantic.dataclasses import dataclass

Kind = Literal[
    "semantic_tokenizer",
    "codec",
    "stage_lm",
    "domain",
    "metric",
    "continuation_metric",
    "detector",
]
KINDS: tuple[Kind, ...] = get_args(Kind)

#: The plugin API that this host speaks, and the oldest one that it still accepts.
API_VERSION = 1
OLDEST_API_VERSION = 1
UNSTATED: Any = None  # pydantic does not check defaults, so a plugin cannot give it


def form(pattern: str, what: str) -> AfterValidator:
    """Accept only texts that match a pattern."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"{text!r} is not {what}")
        return text

    return AfterValidator(check)


Name = Annotated[
    str, form(r"[A-Za-z0-9][A-Za-z0-9_.-]*", "a name; use letters, digits, '_', '.' and '-'")
]
_ATTRIBUTE = r"\w+(\.\w+)*:\w+(\.\w+)*"
_TARGET_FORM = "a target; write 'package.module:attribute'"
Target = Annotated[str, form(_ATTRIBUTE, _TARGET_FORM)]
OptionalTarget = Annotated[str, form(f"({_ATTRIBUTE})?", _TARGET_FORM)]


@dataclass(frozen=True)
class PluginRecord:
    """Name one component that a plugin offers.

    Attributes:
        kind: the contract that it fulfils.
        name: the name that configs use; versioned (``mel_kmeans.v1``) because checkpoints store it.
        target: ``"module:attribute"`` of the implementation.
        config: ``"module:attribute"`` of its options model, importable without torch; empty for
            kinds without options (domains).
        summary: one line for ``segue plugins list``.
        extra: the optional dependency group that it needs, if any.
        api_version: the plugin API that it was written for, now 1. Required: leaving it out means
            1, and a warning names the plugin once it is found.
        source: the distribution or registry file that registered it. Set by the host.
    """

    kind: Kind
    name: Name
    target: Target
    config: OptionalTarget = ""
    summary: str = ""
    extra: str = ""
    api_version: StrictInt = UNSTATED
    source: str = ""
