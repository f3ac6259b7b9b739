"""`segue tokenize`: write the tokens that the stages learn from."""

from __future__ import annotations

from json import loads
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
from segue.apps.cli.output import console, note, print_json, progress_bars


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
    from segue.core.building import checked_device
    from segue.core.config.load import load_config
    from segue.core.data.token_store import TokenStore
    from segue.core.files import check_writable
    from segue.core.manager import default_host
    from segue.core.training.parts import Workspace
    from segue.core.training.parts import tokenize as run

    check_writable(output / "tokens" / "store.json")
    host = default_host()
    loaded = load_config(chosen_source(domain, config, "--config"), host, overrides or ())
    with progress_bars(json) as progress:
        workspace = Workspace(
            loaded.config, output, data, host, checked_device(device), None, progress
        )
        directory = run(workspace)
    count = len(TokenStore(directory, "train").recordings)
    notes = _skipped(directory / "skipped.json")
    if json:
        print_json({"tokens": str(directory), "train_recordings": count, "notes": notes})
        return
    for line in notes:
        note(line)
    console.print(f"{directory}: {count} training recordings")


def _skipped(path: Path) -> list[str]:
    """How many recordings could not be used, and where it says why."""
    if not path.exists():
        return []
    count = len(loads(path.read_text(encoding="utf-8")))
    return [f"recordings left out, as they cannot be used: {count}; see {path}"]
