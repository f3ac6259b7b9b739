"""`segue evaluate likelihood`: what the stages, the first above all, find likely."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from segue.apps.cli.options import (
    DATA_HELP,
    DeviceOption,
    DomainOption,
    JsonOption,
    PipelineOption,
    ReportOption,
    SeedOption,
    SetOption,
    SplitOption,
    load_pipeline,
)
from segue.apps.cli.output import named, note, progress_bars
from segue.apps.cli.reports import held_out, show, written
from segue.core.errors import ConfigError


def command(
    data: Annotated[
        Path | None,
        typer.Option("--data", help="A token store (`segue tokenize`): nats per token of it."),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option("--pairs", help="CSV of minimal pairs, as sWUGGY's and sBLIMP's gold.csv."),
    ] = None,
    audio: Annotated[
        Path | None,
        typer.Option("--audio", help="Folder that paths in --pairs start from. Default: its own."),
    ] = None,
    shuffled: Annotated[
        str | None,
        typer.Option(
            "--shuffled", help=f"Recordings: their true continuation against others. {DATA_HELP}"
        ),
    ] = None,
    domain: DomainOption = None,
    pipeline: PipelineOption = None,
    items: Annotated[
        int, typer.Option(min=1, help="Most batches of each stage; most recordings.")
    ] = 50,
    split: SplitOption = "valid",
    prompt_seconds: Annotated[
        float, typer.Option(min=0.5, max=60, help="With --shuffled: what is left as it is.")
    ] = 3.0,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.5, max=60, help="With --shuffled: what is judged.")
    ] = 5.0,
    piece_seconds: Annotated[
        float, typer.Option(min=0.02, max=10, help="With --shuffled: pieces that change places.")
    ] = 0.5,
    seed: SeedOption = 0,
    output: ReportOption = None,
    overrides: SetOption = None,
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Nats per token of held-out tokens; minimal pairs; true against shuffled continuations."""
    if data is None and pairs is None and shuffled is None:
        raise ConfigError("--data", "nothing to judge", "give --data, --pairs or --shuffled")
    with written(output) as write:
        from segue.evaluation.evaluate import evaluate_likelihood
        from segue.evaluation.minimal_pairs import evaluate_pairs, read_pairs
        from segue.evaluation.order import Order, evaluate_order

        asked = [] if pairs is None else read_pairs(pairs, audio)
        least = prompt_seconds + seconds
        recordings = [] if shuffled is None else held_out(shuffled, items, split, least)
        loaded = load_pipeline(domain, pipeline, overrides, device)
        groups: dict[str, Any] = {}
        with progress_bars(json) as progress, named({"piece_seconds": "--piece-seconds"}):
            if data is not None:
                groups |= evaluate_likelihood(loaded, data, items, progress)
            if asked:
                groups |= evaluate_pairs(loaded, asked, progress)
            if recordings:
                order = Order(prompt_seconds, seconds, piece_seconds, seed)
                groups |= evaluate_order(loaded, recordings, order, progress)
        report = {
            "subject": "likelihood",
            "pipeline": loaded.config.name,
            "data": str(data or pairs or shuffled),
            **groups,
        }
        write(report)
    show(report, "likelihood", groups, json)
    if not json:
        _tell_unusable(groups)


def _tell_unusable(groups: dict[str, Any]) -> None:
    for name, figures in groups.items():
        if figures.get("unusable"):
            note(f"{name}: {figures['unusable']} recordings or pairs cannot be used")
