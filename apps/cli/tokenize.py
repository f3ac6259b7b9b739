"""`segue tokenize`: write the tokens that stages are trained on."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from segue.apps.cli.output import clear_errors, console, note, print_json
from segue.apps.cli.progress import audio_progress
from segue.core.errors import ConfigError, TrainingError
from segue.inference.threads import available_cores

if TYPE_CHECKING:
    from segue.core.progress import Progress

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Job:
    """All that one process needs to write its share of a store; picklable, to be sent to it."""

    config: str
    overrides: tuple[str, ...]
    output: Path
    data: str
    device: str
    rank: int
    world: int
    workers: int


def command(
    data: DataOption,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Training directory; tokens go to OUTPUT/tokens.")
    ],
    domain: DomainOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    device: DeviceOption = "cpu",
    workers: Annotated[
        int,
        typer.Option(
            "--workers",
            min=1,
            help="Processes here that share this rank's work. On a CPU each takes one thread.",
        ),
    ] = 1,
    rank: Annotated[
        int,
        typer.Option("--rank", min=0, envvar="RANK", help="Which share of the shards to write."),
    ] = 0,
    world: Annotated[
        int, typer.Option("--world", min=1, envvar="WORLD_SIZE", help="Of how many shares.")
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
    check_writable(output / "tokens" / "store.json")
    source = chosen_source(domain, config, "--config")
    # Processes that are forked off this one share what it has loaded. A GPU does not survive that.
    forked = workers if device == "cpu" and sys.platform == "linux" else 1
    count = workers // forked
    local = int(os.environ.get("LOCAL_RANK", "0")) * count
    jobs = [
        Job(source, tuple(overrides or ()), output, data, _device(device, local + index),
            rank * count + index, world * count, forked)
        for index in range(count)
    ]  # fmt: skip
    with audio_progress(json) as progress:
        if len(jobs) == 1:
            run_job(jobs[0], progress)
        else:
            _run_side_by_side(jobs, progress)
    _report(output / "tokens", json)


def run_job(job: Job, progress: Progress | None) -> None:
    """Write the shards of one process."""
    from segue.core.checkpoint import checked_device
    from segue.core.config_files import load_config
    from segue.core.plugins import default_host
    from segue.training.workspace import Workspace, tokenize

    host = default_host()
    config = load_config(job.config, host, job.overrides, anew=True).config
    device = checked_device(job.device)
    workspace = Workspace(config, job.output, job.data, host, device, None, progress)
    tokenize(workspace, job.rank, job.world, job.workers)


def _device(device: str, local: int) -> str:
    """Spread the processes of one machine over its GPUs."""
    if device != "cuda" or local == 0:
        return device
    import torch

    return f"cuda:{local % max(1, torch.cuda.device_count())}"


def _run_side_by_side(jobs: Sequence[Job], progress: Progress | None) -> None:
    """Start a process for each job and wait; when one fails, all end."""
    context = multiprocessing.get_context("spawn")
    counts = context.Array("d", 2 * len(jobs))
    threads = max(1, available_cores() // len(jobs))
    processes = [
        context.Process(target=_work, args=(job, counts, index, threads, os.getpid()), daemon=True)
        for index, job in enumerate(jobs)
    ]
    for process in processes:
        process.start()
    try:
        while any(process.exitcode is None for process in processes):
            time.sleep(POLL_SECONDS)
            failed = next((p for p in processes if p.exitcode not in (None, 0)), None)
            if failed is not None:
                raise TrainingError(
                    "--workers",
                    f"a process ended with {failed.exitcode} (its reason is above, if it had one)",
                    "fix that and run the same command: it goes on",
                )
            done, total = sum(counts[0::2]), sum(counts[1::2])
            if progress is not None and total:
                progress("tokens", round(done), round(total))
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _work(job: Job, counts: Any, index: int, threads: int, parent: int) -> None:
    """Write one share, count the progress in ``counts``, and end if the parent ends."""
    import torch

    from segue.data.workers import end_with

    def progress(name: str, done: int, total: int) -> None:
        counts[2 * index], counts[2 * index + 1] = done, total

    end_with(parent)
    torch.set_num_threads(threads)
    with clear_errors():
        run_job(job, progress)


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
