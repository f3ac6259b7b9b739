"""Train pipelines that differ from a given one by overrides of its config, on the same tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segue.core.config import PipelineConfig, StageConfig, TrainingConfig, replace_parts
from segue.core.config_files import load_config, write_pipeline_file
from segue.core.errors import OutputError
from segue.core.files import link_to
from segue.core.plugins import PluginHost
from segue.core.spec import SEMANTIC, StreamSlice
from segue.findings.finding import InapplicableError
from segue.findings.study import Study, plain_command
from segue.training.cost import Hardware, training_cost
from segue.training.workspace import TOKENS, Workspace, export, tokenize, train_all, train_part

WARM_UP = 0.1  # of a short training, at most
SAVES = 8  # of a training


def semantic_stage(config: PipelineConfig) -> StageConfig:
    """Return the stage that predicts semantic tokens."""
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
    """Give the stage another model of the same size, with the options that both have."""
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


TOKENIZER = "semantic_tokenizer"
BASE, RUNS = "from_scratch.yaml", "runs"


@dataclass(frozen=True)
class Variant:
    """One pipeline to be trained."""

    name: str  # of its training directory
    overrides: tuple[str, ...]  # of the given pipeline's config, whose stages have no weights
    # Tokenizers without a checkpoint are trained; the semantic one is fitted again.
    own_tokens: bool = False


class Workshop:
    """Train variants, each in a directory of its own where training can resume."""

    def __init__(self, study: Study) -> None:
        self.study = study
        parts = study.config.parts
        stages = {part: ref for part, ref in parts.items() if part.startswith("stages.")}
        bare = {part: ref.model_copy(update={"checkpoint": None}) for part, ref in stages.items()}
        self.base = study.directory / BASE
        write_pipeline_file(replace_parts(study.config, bare), self.base)

    def config(self, overrides: Sequence[str]) -> PipelineConfig:
        """Return the config of a variant."""
        return load_config(self.base, self.study.host, overrides).config

    def equal_steps(self, overrides: Sequence[str], stages: Sequence[str], flops: float) -> int:
        """Return the steps of these stages that take so much arithmetic in all."""
        once = self.flops([*overrides, *steps_of(self.config(overrides), 1, stages)])
        return max(1, round(flops / once))

    def flops(self, overrides: Sequence[str]) -> float:
        """Return the arithmetic of training the stages that have no weights yet."""
        config, total = self.config(overrides), 0.0
        for stage in config.stages:
            if stage.lm.checkpoint is None:
                (one,) = training_cost(config, self.study.host, f"stages.{stage.name}", Hardware())
                total += one.flops * one.in_all
        return total

    def trained(self, variant: Variant) -> Path:
        """Train a variant or resume it; return the directory of its pipeline."""
        workspace = self._workspace(variant)
        if variant.own_tokens:
            if TOKENIZER in workspace.config.parts:
                train_part(workspace, TOKENIZER)
            return train_all(workspace)
        link_to(self._tokens(), workspace.directory / TOKENS)
        for part, ref in workspace.config.parts.items():
            if part.startswith("stages.") and ref.checkpoint is None:
                train_part(workspace, part)
        return export(workspace)

    def directory(self, variant: Variant) -> Path:
        return self.study.directory / RUNS / variant.name

    def commands(self, variant: Variant) -> list[str]:
        """Return the plain commands that train a variant."""
        fitted = variant.own_tokens and TOKENIZER in self.config(variant.overrides).parts
        return [
            plain_command(
                f"train {part}", config=self.base, data=self.study.settings.data,
                output=self.directory(variant), set=variant.overrides,
            )
            for part in ((TOKENIZER, "all") if fitted else ("all",))
        ]  # fmt: skip

    def _workspace(self, variant: Variant) -> Workspace:
        study, directory = self.study, self.directory(variant)
        config = self.config(variant.overrides)
        kept = directory / "config.yaml"
        if kept.is_file() and load_config(kept, study.host).config != config:
            raise OutputError(
                str(directory), "was trained with other settings", "delete it, or name another -o"
            )

        def report(part: str, step: int, steps: int, losses: Mapping[str, float]) -> None:
            if study.progress is not None:
                study.progress(f"{variant.name} {part}", step, steps)

        return Workspace(
            config, directory, study.settings.data, study.host, study.device, report, study.progress
        )

    def _tokens(self) -> Path:
        """Return a store of the given pipeline's tokens."""
        study = self.study
        if study.settings.tokens is not None:
            return Path(study.settings.tokens)
        return tokenize(
            Workspace(
                study.config, study.directory, study.settings.data, study.host, study.device,
                progress=study.progress,
            )
        )  # fmt: skip
