"""`segue prepare`: run a domain's data recipe."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from segue.apps.cli.options import JsonOption
from segue.apps.cli.output import console, print_json, progress_bars


def command(
    domain: Annotated[str, typer.Argument(help="speech, piano, or a plugin's domain.")],
    source: Annotated[Path, typer.Option("--source", help="Folder of the source data.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")],
    json: JsonOption = False,
) -> None:
    """Turn source data (labelled speech, piano scores) into a manifest to train on."""
    from segue.core.config.load import find_domain
    from segue.core.files import check_writable
    from segue.core.manager import default_host

    check_writable(output / "manifest.csv")
    module, _, function = find_domain(domain, default_host()).recipe.partition(":")
    with progress_bars(json) as progress:
        manifest = getattr(import_module(module), function)(source, output, progress)
    if json:
        print_json({"manifest": str(manifest)})
    else:
        console.print(f"{manifest}")
