"""A plugin in good order: one metric, one lifecycle hook."""

from __future__ import annotations

from collections.abc import Mapping

from segue.core.hookspecs import hookimpl
from segue.core.records import PluginRecord

STEPS: list[int] = []


@hookimpl
def segue_register() -> list[PluginRecord]:
    return [
        PluginRecord(
            "metric",
            "loudness.v1",
            "segue_good.model:Loudness",
            config="segue_good.config:LoudnessOptions",
            summary="how loud it is",
            api_version=1,
        )
    ]


@hookimpl
def segue_train_step(step: int, losses: Mapping[str, float]) -> None:
    STEPS.append(step)
