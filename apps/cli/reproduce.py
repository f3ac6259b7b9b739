"""`segue reproduce`: the paper's findings as tables, from a pipeline and held-out data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segue.apps.cli.options import (
    DeviceOption,
    HeldOutOption,
    ItemsOption,
    JsonOption,
    PipelineOption,
    SeedOption,
    SetOption,
    conditions,
    items_of,
    listed,
    whole_numbers,
)
from segue.apps.cli.output import console, note, print_json, renamed
from segue.apps.cli.progress import progress_bars
from segue.core.errors import ConfigError

ClustersOption = Annotated[list[str], typer.Option(help="Numbers of semantic clusters.")]


def command(
    domain: Annotated[str, typer.Argument(help="Domain whose metrics are used: speech, piano.")],
    data: HeldOutOption,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of tables; goes on with what it holds.")
    ],
    pipeline: PipelineOption = None,
    tables: Annotated[
        list[str] | None, typer.Option(help="Tables to make, as tokens,voice. Default: all.")
    ] = None,
    items: ItemsOption = 20,
    prompt_seconds: Annotated[
        float | None, typer.Option(min=0.5, max=60, help="Prompt from the start of each recording.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", min=0.5, max=600, help="Audio to add.")
    ] = None,
    temperatures: Annotated[
        list[str], typer.Option(help="Temperatures to try for each stage in turn.")
    ] = ["0.6,0.7,0.8,0.9,1.0"],  # noqa: B006
    piece_seconds: Annotated[
        float, typer.Option(min=0.02, max=10, help="Pieces that change places when shuffled.")
    ] = 0.5,
    labels: Annotated[
        str | None, typer.Option(help="CSV as of `segue evaluate semantic`. Default: --data.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", help="Rows of --labels to use: column=value. May be repeated."),
    ] = None,
    per_group: Annotated[
        int, typer.Option(min=1, help="Most items of --labels with one label and speaker.")
    ] = 10,
    midi: Annotated[
        str | None, typer.Option("--midi", help="Folder of MIDI files that --data was made from.")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="Token store of the pipeline's tokenizers. Default: made.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training of each stage of a variant.")] = 400,
    clusters: ClustersOption = ["128,512"],  # noqa: B006
    levels: Annotated[
        list[str], typer.Option(help="Numbers of levels that are drawn given semantic tokens.")
    ] = ["2,4,8"],  # noqa: B006
    codes: Annotated[
        list[str], typer.Option(help="Frames per second x levels x codes per level of codecs.")
    ] = ["25x16x1024,50x8x1024,100x4x1024,50x10x256,50x7x4096"],  # noqa: B006
    codec_steps: Annotated[int, typer.Option(min=1, help="Training of each of --codes.")] = 1500,
    lm_width: Annotated[int, typer.Option(min=1, help="Width of each model of --codes.")] = 192,
    lm_depth: Annotated[int, typer.Option(min=1, help="Layers of each model of --codes.")] = 4,
    seed: SeedOption = 0,
    overrides: SetOption = None,
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Measure the paper's findings: one JSON for each table, and results.md for all."""
    from segue.core.checkpoint import checked_device
    from segue.core.files import check_writable
    from segue.core.plugins import default_host
    from segue.findings.codes import read_shapes
    from segue.findings.finding import RESULTS, VERDICTS
    from segue.findings.reproduce import TABLES, chosen_tables, reproduce
    from segue.findings.study import Settings, Study, suite_of

    conditions(where or [])
    host = default_host()
    places = {"tables": "--tables", "piece_seconds": "--piece-seconds", "codes": "--codes"}
    with renamed(places):
        wanted = chosen_tables(listed(tables) if tables else list(TABLES))
        check_writable(output / RESULTS)
        suite = suite_of(domain, host)
        settings = Settings(
            domain=domain,
            source=pipeline or suite.pipeline or domain,
            data=data,
            prompt_seconds=suite.prompt_seconds if prompt_seconds is None else prompt_seconds,
            seconds=suite.seconds if seconds is None else seconds,
            items=items,
            seed=seed,
            overrides=tuple(overrides or ()),
            temperatures=_numbers(temperatures),
            piece_seconds=piece_seconds,
            labels=labels,
            where=tuple(where or ()),
            per_group=per_group,
            scores=midi,
            tokens=tokens,
            steps=steps,
            clusters=tuple(whole_numbers(clusters, "--clusters")),
            levels=tuple(whole_numbers(levels, "--levels")),
            codes=read_shapes(items_of(codes)),
            codec_steps=codec_steps,
            lm_width=lm_width,
            lm_depth=lm_depth,
        )
        reports = {}
        with progress_bars(json) as progress:
            study = Study(settings, output, host, checked_device(device), progress)
            for name in wanted:
                reports[name], outcome = reproduce(study, name)
                note(f"{name} {outcome}")
    if json:
        print_json(reports)
        return
    for name, report in reports.items():
        for claim in report["claims"] if report else ():
            console.print(f"{name}: {VERDICTS[claim['holds']]}: {claim['claim']}")
    console.print(f"{output / RESULTS}")


def _numbers(texts: list[str]) -> tuple[float, ...]:
    try:
        return tuple(sorted({float(part) for part in items_of(texts)}))
    except ValueError as error:
        problem = f"{','.join(texts)!r} is not a list of numbers"
        raise ConfigError("--temperatures", problem, "write --temperatures 0.7,0.8") from error
