"""`segue evaluate`: figures with confidence intervals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segue.apps.cli.options import (
    DeviceOption,
    DomainOption,
    JsonOption,
    PipelineOption,
    SeedOption,
    SetOption,
    load_pipeline,
)
from segue.apps.cli.output import named, print_json, print_table, progress_bars
from segue.core.errors import ConfigError

if TYPE_CHECKING:
    from segue.core.data.manifest import Recording
    from segue.core.pipeline import Pipeline

SUBJECTS = ("codec", "continuations", "likelihood")


def command(
    subject: Annotated[str, typer.Argument(help="codec, continuations or likelihood.")],
    data: Annotated[
        Path,
        typer.Option("--data", help="Recordings (folder or CSV); for likelihood a token store."),
    ],
    domain: DomainOption = None,
    pipeline: PipelineOption = None,
    items: Annotated[int, typer.Option(min=1, help="Held-out recordings (or batches) used.")] = 50,
    prompt_seconds: Annotated[
        float, typer.Option(min=0.5, max=3600, help="Of each recording, to continue from.")
    ] = 3.0,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.5, max=3600, help="Audio to add.")
    ] = 5.0,
    seed: SeedOption = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write the figures as JSON.")
    ] = None,
    overrides: SetOption = None,
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Evaluate on held-out recordings (split valid)."""
    if subject not in SUBJECTS:
        raise ConfigError(subject, "cannot be evaluated", f"choose one of {', '.join(SUBJECTS)}")
    if math.isnan(prompt_seconds):
        raise ConfigError("--prompt-seconds", "is no number", "give seconds")
    from segue.core.evaluation import evaluate
    from segue.core.files import check_writable, write_json

    if output is not None:
        check_writable(output)
    loaded = load_pipeline(domain, pipeline, overrides, device)
    places = {"seconds": "--seconds", "seed": "--seed", "prompt": "--prompt-seconds"}
    with named(places), progress_bars(json) as progress:
        if subject == "likelihood":
            figures = evaluate.evaluate_likelihood(loaded, data, items, progress)
        elif subject == "codec":
            levels = _levels(loaded.codec.spec.num_levels)
            figures = evaluate.evaluate_codec(
                loaded, _held_out(data, items), _metrics(loaded), levels, progress
            )
        else:
            figures = {
                "continuation": evaluate.evaluate_continuations(
                    loaded,
                    _held_out(data, items),
                    prompt_seconds=prompt_seconds,
                    seconds=seconds,
                    seed=seed,
                    progress=progress,
                )
            }
    report = {"subject": subject, "pipeline": loaded.config.name, "data": str(data), **figures}
    if output is not None:
        write_json(output, report)
    if json:
        print_json(report)
    else:
        _print(subject, figures)


def _held_out(data: Path, items: int) -> list[Recording]:
    """Recordings spread evenly over the held-out split."""
    from segue.core.data.manifest import load_recordings

    recordings = load_recordings(data, "valid")
    return recordings[:: max(1, len(recordings) // items)][:items]


def _levels(total: int) -> list[int]:
    """1, 2, 4, ... and all."""
    return sorted({2**power for power in range(total.bit_length()) if 2**power < total} | {total})


def _metrics(pipeline: Pipeline) -> dict[str, Any]:
    host = pipeline.host
    return {
        record.name: host.create("metric", record.name, {}, place="metric")
        for record in host.records("metric")
    }


def _print(subject: str, figures: dict[str, Any]) -> None:
    rows = [
        (group, name, f"{e['mean']:.3f}", f"[{e['low']:.3f}, {e['high']:.3f}]",
         f"{e['lowest']:.3f}", f"{e['highest']:.3f}", e["count"])
        for group, columns in figures.items()
        for name, e in columns.items()
        if isinstance(e, dict)
    ]  # fmt: skip
    columns = (subject, "figure", "mean", "95 % interval", "lowest", "highest", "items")
    print_table(columns, rows)
