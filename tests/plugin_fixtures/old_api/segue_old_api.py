"""A plugin for a plugin API that is no longer spoken."""

from __future__ import annotations

from segue.core.hookspecs import hookimpl
from segue.core.records import PluginRecord


@hookimpl
def segue_register() -> list[PluginRecord]:
    return [PluginRecord("codec", "old.v1", "segue_old_api.model:Codec", api_version=0)]
