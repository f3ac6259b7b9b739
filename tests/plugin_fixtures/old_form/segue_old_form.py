"""A plugin written for the first version of Segue: a hook for each kind, no api_version."""

from __future__ import annotations

from segue.core.hookspecs import hookimpl
from segue.core.records import PluginRecord


@hookimpl
def segue_register_codecs() -> list[PluginRecord]:
    return [PluginRecord("codec", "old_form.v1", "segue_old_form:Codec")]


@hookimpl
def segue_register_metrics() -> list[PluginRecord]:
    return [PluginRecord("metric", "old_form.v1", "segue_old_form:Metric")]
