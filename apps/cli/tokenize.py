"""`segue tokenize`: write the tokens that the stages learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segue.apps.cli.options import (
    ConfigOption,
    DataOption,
    DeviceOption,
    DomainOption,
    JsonOption,
    SetOption,
    chosen_source,
)
from segue.apps.cli.output import console, print_json, progress_bars


def command(
    data: DataOption,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Training directory; tokens go to OUTPUT/tokens.")
    ],
    domain: DomainOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Tokenize recordings once, with the tokenizers trained in OUTPUT or named by the config."""
    from segue.apps.cli.options import checked_device
    from segue.core.config.load import load_config
    from segue.core.data.token_store import TokenStore
    from segue.core.manager import default_host
    from segue.core.training.parts import Workspace
    from segue.core.training.parts import tokenize as run

    host = default_host()
    loaded = load_config(chosen_source(domain, config, "--config"), host, overrides or ())
    with progress_bars(json) as progress:
        workspace = Workspace(
            loaded.config, output, data, host, checked_device(device), None, progress
        )
        directory = run(workspace)
    count = len(TokenStore(directory, "train").recordings)
    if json:
        print_json({"tokens": str(directory), "train_recordings": count})
    else:
        console.print(f"{directory}: {count} training recordings")
