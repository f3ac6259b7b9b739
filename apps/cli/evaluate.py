"""`segue evaluate`: figures with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from segue.apps.cli import evaluate_codec, evaluate_semantic
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
    load_pipeline,
)
from segue.apps.cli.output import named, progress_bars
from segue.apps.cli.reports import held_out, show, written
from segue.core.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="Measure tokenizers and pipelines on recordings.")
app.command("codec")(evaluate_codec.command)
app.command("semantic")(evaluate_semantic.semantic)
app.command("pitches")(evaluate_semantic.pitches)


@app.command("continuations")
def continuations(
    data: HeldOutOption,
    domain: DomainOption = None,
    pipeline: PipelineOption = None,
    items: ItemsOption = 50,
    prompt_seconds: Annotated[
        float, typer.Option(min=0.5, max=3600, help="Of each recording, to continue from.")
    ] = 3.0,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.5, max=3600, help="Audio to add.")
    ] = 5.0,
    seed: SeedOption = 0,
    output: ReportOption = None,
    overrides: SetOption = None,
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Continue held-out recordings: silence, clipping, drift and loops in what comes out."""
    if math.isnan(prompt_seconds):
        raise ConfigError("--prompt-seconds", "is no number", "give seconds")

    def measure(loaded: Any, progress: Any) -> dict[str, Any]:
        from segue.core.evaluation.evaluate import evaluate_continuations

        recordings = held_out(data, items, "valid")
        figures = evaluate_continuations(
            loaded,
            recordings,
            prompt_seconds=prompt_seconds,
            seconds=seconds,
            seed=seed,
            progress=progress,
        )
        return {"continuation": figures}

    places = {"seconds": "--seconds", "seed": "--seed", "prompt": "--prompt-seconds"}
    with named(places):
        _of_pipeline(
            "continuations", data, domain, pipeline, overrides, device, output, json, measure
        )


@app.command("likelihood")
def likelihood(
    data: Annotated[
        Path, typer.Option("--data", help="A token store: what `segue tokenize` wrote.")
    ],
    domain: DomainOption = None,
    pipeline: PipelineOption = None,
    items: Annotated[int, typer.Option(min=1, help="Batches of each stage.")] = 50,
    output: ReportOption = None,
    overrides: SetOption = None,
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Nats per token that the stages need for held-out tokens."""

    def measure(loaded: Any, progress: Any) -> dict[str, Any]:
        from segue.core.evaluation.evaluate import evaluate_likelihood

        return evaluate_likelihood(loaded, data, items, progress)

    _of_pipeline("likelihood", data, domain, pipeline, overrides, device, output, json, measure)


def _of_pipeline(
    subject: str,
    data: Path | str,
    domain: str | None,
    pipeline: str | None,
    overrides: list[str] | None,
    device: str,
    output: Path | None,
    json: bool,
    measure: Callable[[Any, Any], dict[str, Any]],
) -> None:
    """Load a whole pipeline, measure it, and tell."""
    with written(output) as write:
        loaded = load_pipeline(domain, pipeline, overrides, device)
        with progress_bars(json) as progress:
            figures = measure(loaded, progress)
        report = {"subject": subject, "pipeline": loaded.config.name, "data": str(data), **figures}
        write(report)
    show(report, subject, figures, json)
