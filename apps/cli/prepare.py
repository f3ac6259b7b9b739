"""`segue prepare`: run a domain's data recipe, or check any source of audio."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from segue.apps.cli.options import JsonOption
from segue.apps.cli.output import console, print_json
from segue.apps.cli.progress import audio_progress, progress_bars
from segue.core.errors import ConfigError

FILES = "files"


def command(
    recipe: Annotated[
        str, typer.Argument(help="speech, piano, a plugin's domain, or 'files' for any audio.")
    ],
    source: Annotated[
        str,
        typer.Option(
            "--source",
            help="The recipe's source data; for 'files' a folder, CSV manifest, lhotse CutSet or"
            " Shar, WebDataset tars, a URL of one of these, or a YAML file of several.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")],
    min_seconds: Annotated[
        float, typer.Option("--min-seconds", min=0, help="files: shorter ones are left out.")
    ] = 0.1,
    held_out: Annotated[
        float,
        typer.Option("--held-out", min=0, max=0.9, help="files: share of the groups to hold out."),
    ] = 0.05,
    group_column: Annotated[
        str | None, typer.Option("--group-column", help="files: a manifest's column of groups.")
    ] = None,
    group_level: Annotated[
        int | None,
        typer.Option("--group-level", min=0, help="files: the folder that is the group, 0 on top."),
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="files: processes that decode.")
    ] = 1,
    json: JsonOption = False,
) -> None:
    """Turn source data into a manifest to train on; the same command goes on after a kill."""
    from segue.core.files import check_writable

    check_writable(output / "manifest.csv")
    if recipe != FILES:
        _run_recipe(recipe, source, output, json)
        return
    from segue.data.prepare import PROBLEMS, prepare_files
    from segue.data.sources import Grouping

    grouping = Grouping(group_column, group_level, held_out)
    with audio_progress(json) as progress:
        summary = prepare_files(
            source,
            output,
            grouping=grouping,
            min_seconds=min_seconds,
            workers=workers,
            progress=progress,
        )
    if json:
        print_json({"manifest": str(output / "manifest.csv"), **summary})
        return
    hours = ", ".join(f"{split} {value:.2f} h" for split, value in summary["hours"].items())
    console.print(f"{output / 'manifest.csv'}: {summary['recordings']} recordings, {hours}")
    if summary["left_out"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in summary["left_out"].items())
        console.print(f"left out: {kinds}; see {output / PROBLEMS}")


def _run_recipe(domain: str, source: str, output: Path, json: bool) -> None:
    from segue.core.config_files import find_domain
    from segue.core.plugins import default_host

    if "://" in source:
        raise ConfigError(
            "--source", f"{source} is a URL", "name a folder: recipes read local data"
        )
    module, _, function = find_domain(domain, default_host()).recipe.partition(":")
    with progress_bars(json) as progress:
        manifest = getattr(import_module(module), function)(Path(source), output, progress)
    if json:
        print_json({"manifest": str(manifest)})
    else:
        console.print(f"{manifest}")
