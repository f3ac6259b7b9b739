"""`segue plot`: pictures of reports that `segue evaluate` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segue.apps.cli.output import console

app = typer.Typer(no_args_is_help=True, help="Draw reports of `segue evaluate`.")

ReportsArgument = Annotated[
    list[Path], typer.Argument(help="Reports of `segue evaluate codec -o`.")
]
PictureOption = Annotated[Path, typer.Option("--output", "-o", help="A .png file.")]


@app.command("codec")
def codec(
    reports: ReportsArgument,
    output: PictureOption = Path("rate_distortion.png"),
    metrics: Annotated[
        str | None,
        typer.Option(help="Such as pesq.v1,stoi.v1. Default: all that are in every report."),
    ] = None,
) -> None:
    """Quality against bit rate, one line a report, one point each number of levels."""
    from segue.apps.plots import draw_rate_distortion

    wanted = None if metrics is None else [name.strip() for name in metrics.split(",")]
    draw_rate_distortion(reports, output, wanted)
    console.print(f"{output}")


@app.command("codebooks")
def codebooks(reports: ReportsArgument, output: PictureOption = Path("codebooks.png")) -> None:
    """Codes used and perplexity at each level, one line a report."""
    from segue.apps.plots import draw_codebooks

    draw_codebooks(reports, output)
    console.print(f"{output}")
