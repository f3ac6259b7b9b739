"""A plugin whose older description was left behind; only the newer one names this module."""

from __future__ import annotations

from segue.core.hookspecs import hookimpl
from segue.core.records import PluginRecord


@hookimpl
def segue_register() -> list[PluginRecord]:
    return [PluginRecord("codec", "twice.v1", "segue_twice.model:Codec", api_version=1)]
