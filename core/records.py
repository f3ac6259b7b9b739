"""What a plugin registers: records of strings, so that registering imports no implementation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

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

#: The plugin API that this host speaks, and the oldest it still accepts.
API_VERSION = 1
OLDEST_API_VERSION = 1


@dataclass(frozen=True)
class PluginRecord:
    """One component that a plugin offers.

    Attributes:
        kind: what contract it fulfils.
        name: the name configs use; versioned (``mel_kmeans.v1``) because checkpoints store it.
        target: ``"module:attribute"`` of the implementation.
        config: ``"module:attribute"`` of its options model, importable without torch; empty for
            kinds that take no options (domains).
        summary: one line for ``segue plugins list``.
        extra: the optional dependency group that it needs, if any.
        api_version: the plugin API it was written for.
        source: who registered it: a distribution, or the path of a registry file. Set by the host.
    """

    kind: Kind
    name: str
    target: str
    config: str = ""
    summary: str = ""
    extra: str = ""
    api_version: int = API_VERSION
    source: str = ""
