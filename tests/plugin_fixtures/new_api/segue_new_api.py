"""A plugin for a plugin API that is not spoken yet."""

from __future__ import annotations

from segue.core.hookspecs import hookimpl
from segue.core.records import PluginRecord


@hookimpl
def segue_register() -> list[PluginRecord]:
    return [PluginRecord("codec", "new.v1", "segue_new_api.model:Codec", api_version=2)]
