"""`segue evaluate continuations`: what a pipeline makes of held-out prompts, by any metrics."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from segue.apps.cli.evaluate_metrics import chosen_metrics, domain_of, tell_left_out
from segue.apps.cli.options import (
    DeviceOption,
    DomainOption,
    HeldOutOption,
    ItemsOption,
    JsonOption,
    PipelineOption,
    ReportOption,
    SeedOption,
    SetOption,
    SplitOption,
    load_pipeline,
)
from segue.apps.cli.output import named, progress_bars
from segue.apps.cli.reports import held_out, show, written
from segue.core.errors import ConfigError


def command(
    data: HeldOutOption,
    domain: DomainOption = None,
    pipeline: PipelineOption = None,
    items: ItemsOption = 50,
    split: SplitOption = "valid",
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Such as health.v1,speaker.v1. Default: all for the domain that are installed."
        ),
    ] = None,
    prompt_seconds: Annotated[
        float, typer.Option(min=0.5, max=3600, help="Of each recording, to continue from.")
    ] = 3.0,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.5, max=3600, help="Audio to add.")
    ] = 5.0,
    complete: Annotated[
        bool, typer.Option("--complete", help="Only recordings that last for both.")
    ] = False,
    seed: SeedOption = 0,
    audio: Annotated[
        Path | None,
        typer.Option(help="Folder to write what is measured to, prompts included, as WAV files."),
    ] = None,
    output: ReportOption = None,
    overrides: SetOption = None,
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Continue held-out recordings and measure it: health, voice, phones, key, rhythm."""
    if math.isnan(prompt_seconds):
        raise ConfigError("--prompt-seconds", "is no number", "give seconds")
    places = {"seconds": "--seconds", "seed": "--seed", "prompt": "--prompt-seconds"}
    with written(output) as write, named(places):
        loaded = load_pipeline(domain, pipeline, overrides, device)
        from segue.core.evaluation.continuations import evaluate_continuations
        from segue.core.files import check_writable

        if audio is not None:
            check_writable(audio / "001.wav")
        kind = domain_of(loaded.host, domain or loaded.config.name)
        chosen, left_out = chosen_metrics(loaded.host, "continuation_metric", metrics, kind)
        least = prompt_seconds + seconds if complete else 0.0
        recordings = held_out(data, items, split, least)
        with progress_bars(json) as progress:
            figures = evaluate_continuations(
                loaded,
                recordings,
                chosen,
                prompt_seconds=prompt_seconds,
                seconds=seconds,
                seed=seed,
                audio=audio,
                progress=progress,
            )
        report = {
            "subject": "continuations",
            "pipeline": loaded.config.name,
            "data": str(data),
            "split": split,
            "prompt_seconds": prompt_seconds,
            "seconds": seconds,
            "seed": seed,
            **figures,
            "left_out": left_out,
        }
        write(report)
    show(report, "metric", figures["metrics"], json)
    if not json:
        tell_left_out(report)
