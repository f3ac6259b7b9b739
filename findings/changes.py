"""Make overrides of a pipeline's config, in the form of `--set`, that turn it into variants."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from segue.core.config import PipelineConfig, StageConfig, TrainingConfig
from segue.core.plugins import PluginHost
from segue.core.spec import SEMANTIC, StreamSlice
from segue.findings.finding import InapplicableError

WARM_UP = 0.1  # of a short training, at most
SAVES = 8  # of a training


def semantic_stage(config: PipelineConfig) -> StageConfig:
    """Return the stage that predicts semantic tokens.

    Raises:
        InapplicableError: if the pipeline has none.
    """
    found = next((s for s in config.stages if _stream(s) == SEMANTIC), None)
    if found is None:
        raise InapplicableError("the pipeline has no semantic stage")
    return found


def acoustic_stages(config: PipelineConfig) -> list[StageConfig]:
    return [stage for stage in config.stages if _stream(stage) != SEMANTIC]


def _stream(stage: StageConfig) -> str:
    return StreamSlice.parse(stage.predicts).stream


def one_acoustic_stage(config: PipelineConfig) -> list[str]:
    """Let the first acoustic stage predict the levels of all; drop the others."""
    first, *others = every = acoustic_stages(config)
    stops = [StreamSlice.parse(stage.predicts).stop for stage in every]
    known = [stop for stop in stops if stop is not None]
    levels = f"[0:{max(known)}]" if len(known) == len(stops) else ""
    return [
        f"stages.{first.name}.predicts=acoustic{levels}",
        *(f"stages.{other.name}.drop=true" for other in others),
    ]


def swapped(
    host: PluginHost, stage: StageConfig, use: str, sampling: Mapping[str, Any]
) -> list[str]:
    """Give the stage another model of the same size, with the options that both have.

    Args:
        sampling: of the other model.
    """
    if stage.lm.use == use:
        return []
    place, options = f"stages.{stage.name}", stage.lm.options
    known = type(host.options("stage_lm", use, {}, place)).model_fields
    both = {key: value for key, value in options.items() if key in known}
    return [
        f"{place}.lm.use={use}",
        *assignments(f"{place}.lm.options", both),
        *assignments(f"{place}.sampling", {"iterations": None} | dict(sampling)),
    ]


def steps_of(config: PipelineConfig, steps: int, stages: Sequence[str]) -> list[str]:
    """Train each of these stages for so many steps."""
    found = []
    for stage in config.stages:
        if stage.name in stages:
            values = short_training(stage.lm.training, steps)
            found += assignments(f"stages.{stage.name}.lm.training", values)
    return found


def short_training(training: TrainingConfig, steps: int) -> dict[str, int]:
    """Train for so many steps, and save often enough to lose little when killed."""
    return {
        "steps": steps,
        "warmup_steps": min(training.warmup_steps, round(WARM_UP * steps)),
        "save_every": max(1, steps // SAVES),
    }


def assignments(place: str, values: Mapping[str, Any]) -> list[str]:
    """Write each value as ``place.key=value``."""
    return [f"{place}.{key}={json.dumps(value)}" for key, value in values.items()]


def keeping(stage: StageConfig) -> list[str]:
    """Keep the stage with its present weights."""
    return assignments(f"stages.{stage.name}.lm", {"checkpoint": stage.lm.checkpoint})
