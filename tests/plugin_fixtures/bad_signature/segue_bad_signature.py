"""A plugin of which one hook is in order and another takes an argument that does not exist."""

from __future__ import annotations

from segue.core.hookspecs import hookimpl
from segue.core.records import PluginRecord


@hookimpl
def segue_register() -> list[PluginRecord]:
    return [PluginRecord("metric", "half.v1", "segue_bad_signature:half", api_version=1)]


@hookimpl
def segue_train_step(part: str, epoch: int) -> None:
    raise AssertionError("a plugin that is out of order must not be called")
