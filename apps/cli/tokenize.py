"""`segue tokenize`: write the tokens that stages are trained on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from segue.apps.cli.options import (
    AnewOption,
    ConfigOption,
    DataOption,
    DeviceOption,
    JsonOption,
    SetOption,
    chosen_source,
)
from segue.apps.cli.output import console, note, print_json
from segue.apps.cli.progress import audio_progress
from segue.core.errors import ConfigError


def command(
    data: DataOption,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Training directory; tokens go to OUTPUT/tokens.")
    ],
    domain: AnewOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    device: DeviceOption = "cpu",
    workers: Annotated[
        int,
        typer.Option(
            "--workers",
            min=1,
            help="Processes here that share this rank's work, on a CPU, one thread each.",
        ),
    ] = 1,
    rank: Annotated[
        int,
        typer.Option(
            "--rank", min=0, envvar="RANK", help="Number of this rank, which writes its own shards."
        ),
    ] = 0,
    world: Annotated[
        int, typer.Option("--world", min=1, envvar="WORLD_SIZE", help="Number of ranks.")
    ] = 1,
    json: JsonOption = False,
) -> None:
    """Tokenize recordings once, with the tokenizers trained in OUTPUT or named by the config.

    The same command goes on after a kill. Ranks, as torchrun starts them, work independently:
    each writes its own shards.
    """
    from segue.core.files import check_writable

    if rank >= world:
        raise ConfigError("--rank", f"{rank} is not below --world {world}", f"use 0 to {world - 1}")
    if workers > 1 and (device != "cpu" or sys.platform != "linux"):
        # Processes are forked to share what is loaded. A GPU does not survive that.
        fix = "start ranks with torchrun, or with --rank and --world"
        raise ConfigError("--workers", "share the work on a CPU under Linux only", fix)
    check_writable(output / "tokens" / "store.json")
    from segue.core.checkpoint import checked_device
    from segue.core.config_files import load_config
    from segue.core.plugins import default_host
    from segue.training.ranks import device_of_rank
    from segue.training.workspace import Workspace, tokenize

    host, source = default_host(), chosen_source(domain, config, "--config")
    loaded = load_config(source, host, overrides or (), anew=True).config
    with audio_progress(json) as progress:
        place = checked_device(device_of_rank(device))
        workspace = Workspace(loaded, output, data, host, place, None, progress)
        tokenize(workspace, rank, world, workers)
    _report(output / "tokens", json)


def _report(directory: Path, json: bool) -> None:
    """Print what the store holds by now; other ranks may still be writing."""
    from segue.data.store_writer import PROBLEMS, list_problems
    from segue.data.token_store import TokenStore, missing_shards

    missing = missing_shards(directory)
    left_out = list_problems(directory)
    notes = []
    if missing:
        notes.append(f"shards that other ranks are still to write: {len(missing)}")
    if left_out:
        where = directory / PROBLEMS
        notes.append(f"recordings left out, as they cannot be used: {left_out}; see {where}")
    count = None if missing else len(TokenStore(directory, "train"))
    if json:
        print_json({"tokens": str(directory), "train_recordings": count, "notes": notes})
        return
    for line in notes:
        note(line)
    console.print(f"{directory}" if missing else f"{directory}: {count} training recordings")
