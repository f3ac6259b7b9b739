"""A plugin that implements a hook which does not exist."""

from __future__ import annotations

from segue.core.hookspecs import hookimpl
from segue.core.records import PluginRecord


@hookimpl
def segue_register_metric() -> list[PluginRecord]:
    return []
