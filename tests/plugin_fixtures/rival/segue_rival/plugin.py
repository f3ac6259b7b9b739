"""A plugin that claims the name of another one's metric."""

from __future__ import annotations

from segue.core.hookspecs import hookimpl
from segue.core.records import PluginRecord


@hookimpl
def segue_register() -> list[PluginRecord]:
    return [PluginRecord("metric", "loudness.v1", "segue_rival.model:Loudness", api_version=1)]
